/* Two loops of system calls that Python would spend a tenth of its time around.
 *
 * relay/native/__init__.py has the same in Python, which is used where this was not built, and says what each must do.
 * Nothing is decided here: whatever is not the ordinary case is given back.  The GIL is released while the calls are
 * made; none of them blocks.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

struct behind { int fd, error; Py_ssize_t sent; };

/* The descriptors that are a dict's keys, with room for as many `behind`; NULL with an exception set. */
static int *descriptors_of(PyObject *members, Py_ssize_t *count, struct behind **room)
{
    Py_ssize_t size = PyDict_Size(members), position = 0;
    PyObject *key;
    int *fds;

    *room = PyMem_New(struct behind, size + 1);
    fds = PyMem_New(int, size + 1);
    if (*room == NULL || fds == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (*count = 0; PyDict_Next(members, &position, &key, NULL); ++*count) {
        long fd = PyLong_AsLong(key);
        if (fd == -1 && PyErr_Occurred())
            goto failed;
        if (fd < 0 || fd > INT_MAX) {
            PyErr_Format(PyExc_ValueError, "%ld is no file descriptor", fd);
            goto failed;
        }
        fds[*count] = (int)fd;
    }
    return fds;
failed:
    PyMem_Free(*room);
    PyMem_Free(fds);
    return NULL;
}

/* [(fd, sent, errno), ...]; frees what descriptors_of() made. */
static PyObject *told(int *fds, struct behind *behind, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);

    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *entry = Py_BuildValue("ini", behind[i].fd, behind[i].sent, behind[i].error);
        if (entry == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, entry);
    }
    PyMem_Free(behind);
    PyMem_Free(fds);
    return list;
}

static PyObject *send_each(PyObject *self, PyObject *args)
{
    PyObject *members;
    int file, *fds;
    long long offset;
    Py_ssize_t size, count, missed = 0;
    struct behind *behind;

    if (!PyArg_ParseTuple(args, "O!iLn:send_each", &PyDict_Type, &members, &file, &offset, &size))
        return NULL;
    if ((fds = descriptors_of(members, &count, &behind)) == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        ssize_t sent;
        do {
            off_t at = (off_t)offset;
            sent = sendfile(fds[i], file, &at, (size_t)size);
        } while (sent < 0 && errno == EINTR);
        if (sent != size)
            behind[missed++] = (struct behind){fds[i], sent < 0 ? errno : 0, sent < 0 ? 0 : sent};
    }
    Py_END_ALLOW_THREADS
    return told(fds, behind, missed);
}

static PyObject *write_each(PyObject *self, PyObject *args)
{
    PyObject *members;
    Py_buffer data;
    int *fds;
    Py_ssize_t count, missed = 0;
    struct behind *behind;

    if (!PyArg_ParseTuple(args, "O!y*:write_each", &PyDict_Type, &members, &data))
        return NULL;
    if ((fds = descriptors_of(members, &count, &behind)) == NULL) {
        PyBuffer_Release(&data);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        ssize_t sent;
        do
            sent = write(fds[i], data.buf, (size_t)data.len);
        while (sent < 0 && errno == EINTR);
        if (sent != data.len)
            behind[missed++] = (struct behind){fds[i], sent < 0 ? errno : 0, sent < 0 ? 0 : sent};
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return told(fds, behind, missed);
}

enum { MOST_EVENTS = 1024, COPIED = 12 << 10, BUFFER = 16 << 10, BULK = 32 << 10 };

/* One turn of a flow: bytes taken from its source, bytes that its sink has of them, why it has no more. */
struct passed { ssize_t taken, sent; int error; };

static struct passed spliced(int source, int sink, int pipe_out, int pipe_in, size_t size)
{
    struct passed it = {.taken = splice(source, NULL, pipe_in, NULL, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE)};

    if (it.taken <= 0)
        return it;
    do /* a signal may come before anything was moved */
        it.sent = splice(pipe_out, NULL, sink, NULL, (size_t)it.taken, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    while (it.sent < 0 && errno == EINTR);
    if (it.sent < 0)
        it.error = errno;
    return it;
}

/* The same; of so little, two copies are cheaper than what the kernel does for a pipe.  `size` is what the pipe holds. */
static struct passed copied(int source, int sink, int pipe_in, size_t size)
{
    char buffer[BUFFER];
    struct passed it = {.taken = recv(source, buffer, Py_MIN(size, sizeof buffer), MSG_DONTWAIT)};

    if (it.taken <= 0)
        return it;
    do
        it.sent = send(sink, buffer, (size_t)it.taken, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (it.sent < 0 && errno == EINTR);
    if (it.sent < 0)
        it.error = errno;
    if (it.sent < it.taken) {
        ssize_t sent = Py_MAX(it.sent, 0);
        if (write(pipe_in, buffer + sent, (size_t)(it.taken - sent)) != it.taken - sent)
            it.error = EIO; /* it was not empty: nothing of this flow can be trusted any more */
    }
    return it;
}

static PyObject *pump_ready(PyObject *self, PyObject *args)
{
    int epoll, most, pipe_in, pipe_out, ready, failed = 0, rest = 0, stuck = -1, error = 0;
    Py_ssize_t size, held = 0;
    Py_buffer routes, moved, recent;
    struct epoll_event events[MOST_EVENTS];
    PyObject *list, *blocked;

    if (!PyArg_ParseTuple(args, "iiw*w*w*iin:pump_ready", &epoll, &most, &routes, &moved, &recent, &pipe_out, &pipe_in,
                          &size))
        return NULL;
    if (most > MOST_EVENTS)
        most = MOST_EVENTS;
    Py_BEGIN_ALLOW_THREADS
    int *out_of = routes.buf, *came = recent.buf;
    uint64_t *moved_from = moved.buf;
    Py_ssize_t known = Py_MIN(Py_MIN(routes.len, recent.len) / (Py_ssize_t)sizeof *out_of,
                              moved.len / (Py_ssize_t)sizeof *moved_from);
    int room = Py_MAX(fcntl(pipe_in, F_GETPIPE_SZ), 0);
    int much = 0;
    /* More may have come meanwhile, and a turn of the reactor costs as much as three pieces that are little.  Of bulk
       there is the more, the later one comes. */
    for (int served = 0; served < most && !rest && !much && stuck < 0; served += ready) {
        ready = epoll_wait(epoll, events, most - served, 0);
        if (ready <= 0) {
            failed = ready < 0 && errno != EINTR ? errno : 0;
            break;
        }
        for (int i = 0; i < ready && stuck < 0; i++) {
            int fd = events[i].data.fd;
            if (events[i].events != EPOLLIN || fd >= known || out_of[fd] < 0) {
                events[rest++] = events[i];
                continue;
            }
            struct passed it = came[fd] <= COPIED && room ? copied(fd, out_of[fd], pipe_in, (size_t)Py_MIN(room, size))
                                                          : spliced(fd, out_of[fd], pipe_out, pipe_in, (size_t)size);
            if (it.taken <= 0) {
                if (it.taken == 0 || errno != EAGAIN) /* an end: whoever reads again is told the same */
                    events[rest++] = events[i];
                continue;
            }
            came[fd] = (int)it.taken;
            much |= it.taken >= BULK;
            if (it.sent > 0)
                moved_from[fd] += (uint64_t)it.sent;
            if (it.sent < it.taken) {
                stuck = fd;
                error = it.error == EAGAIN ? 0 : it.error;
                held = it.taken - Py_MAX(it.sent, 0);
            } else if (it.taken == size)
                events[rest++] = events[i]; /* there may be much more */
        }
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&routes);
    PyBuffer_Release(&moved);
    PyBuffer_Release(&recent);
    if (failed) {
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if ((list = PyList_New(rest)) == NULL)
        return NULL;
    for (int i = 0; i < rest; i++) {
        PyObject *entry = Py_BuildValue("iI", events[i].data.fd, events[i].events);
        if (entry == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, i, entry);
    }
    if (stuck >= 0)
        blocked = Py_BuildValue("ini", stuck, held, error);
    else
        blocked = Py_NewRef(Py_None);
    return blocked == NULL ? (Py_DECREF(list), NULL) : Py_BuildValue("NN", list, blocked);
}

static PyMethodDef methods[] = {
    {"send_each", send_each, METH_VARARGS, "See relay.native.send_each."},
    {"write_each", write_each, METH_VARARGS, "See relay.native.write_each."},
    {"pump_ready", pump_ready, METH_VARARGS, "See relay.native.PumpReady."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_relay_loops", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__relay_loops(void)
{
    PyObject *made = PyModule_Create(&module);

    if (made != NULL && PyModule_AddIntConstant(made, "API", 3) < 0)
        Py_CLEAR(made);
    return made;
}
