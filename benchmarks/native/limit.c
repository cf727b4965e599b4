/* The least that fan-out can cost: a bare loop of the system calls that our aggregator makes, and nothing else.
 *
 *     limit PORT KBITS INTERVAL_MS SLICES
 *
 * An HTTP-FLV server of one made-up stream on 127.0.0.1: 24 pictures and 48 sounds a second (as many messages as the clip
 * has that the others send), a keyframe each second.  The stream is written to a memfd.  Its viewers are dealt into slices,
 * each of which is sent what there is once an interval, one sendfile each; the slices are spread over the interval.  An
 * interval of 0: all are sent each message at once.
 */
#include "common.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MESSAGES_PER_SECOND = 72, SOUND_BYTES = 170, MAX_VIEWERS = 1 << 16, NOTSENT_LOWAT = 128 << 10 };

struct viewer { int fd; off_t offset; };

static struct viewer viewers[MAX_VIEWERS];
static int count, log_fd;
static off_t end, keyframe;
static uint32_t messages;

/* The next message, as an FLV tag: a picture of so many bytes, then two sounds. */
static void append(size_t picture_bytes) {
    static uint8_t tag[1 << 20];
    bool is_picture = messages % 3 == 0, is_keyframe = messages % MESSAGES_PER_SECOND == 0;
    size_t bytes = is_picture ? picture_bytes : SOUND_BYTES;
    uint32_t timestamp = messages * 1000ull / MESSAGES_PER_SECOND, size = bytes + 11;
    uint8_t head[] = {is_picture ? 9 : 8, bytes >> 16, bytes >> 8, bytes, timestamp >> 16, timestamp >> 8, timestamp,
                      timestamp >> 24, 0, 0, 0, !is_picture ? 0xAF : is_keyframe ? 0x17 : 0x27, 1};
    uint8_t tail[] = {size >> 24, size >> 16, size >> 8, size};
    memcpy(tag, head, sizeof head);
    memcpy(tag + size, tail, 4);
    if (is_keyframe) keyframe = end;
    if (pwrite(log_fd, tag, size + 4, end) != (ssize_t)size + 4) die("can't write");
    end += size + 4;
    messages++;
}

static void admit(int listener) {
    static const char head[] = "HTTP/1.0 200 OK\r\nContent-Type: video/x-flv\r\n\r\nFLV\1\1\0\0\0\11\0\0\0";
    for (int fd; count < MAX_VIEWERS && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (send(fd, head, sizeof head, MSG_NOSIGNAL) != sizeof head) die("can't answer"); /* with the string's own 0 */
        viewers[count++] = (struct viewer){fd, keyframe};
    }
}

static void send_slice(int slice, int slices) {
    for (int i = (long)slice * count / slices; i < (long)(slice + 1) * count / slices; i++) {
        struct viewer *who = &viewers[i];
        if (who->offset < end && sendfile(who->fd, log_fd, &who->offset, end - who->offset) < 0 && errno != EAGAIN)
            who->offset = (off_t)1 << 60; /* gone */
    }
}

int main(int words, char **word) {
    program_name = "limit";
    if (words != 5) die("limit PORT KBITS INTERVAL_MS SLICES");
    int port = atoi(word[1]), slices = atoi(word[4]), one = 1, low = NOTSENT_LOWAT;
    double bytes_per_second = strtod(word[2], NULL) * 125;
    size_t picture = (bytes_per_second - MESSAGES_PER_SECOND * 15) / (MESSAGES_PER_SECOND / 3) - 2 * SOUND_BYTES;
    double interval = atof(word[3]) / 1e3;
    allow_descriptors();
    log_fd = memfd_create("log", MFD_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* connections inherit these */
    setsockopt(listener, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &low, sizeof low);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("can't listen");
    double begun = now(), tick = interval ? interval / slices : 1.0 / MESSAGES_PER_SECOND;
    for (long number = 1;; number++) {
        double wait = begun + number * tick - now();
        if (wait > 0) usleep(wait * 1e6);
        admit(listener);
        while (messages <= (now() - begun) * MESSAGES_PER_SECOND) append(picture);
        if (interval) send_slice(number % slices, slices);
        else send_slice(0, 1);
    }
}
