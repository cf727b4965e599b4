/* Publishes one FLV file as many streams, each picture in its time, over and over, in one thread.
 *
 *     publisher FILE COUNT RATE rtmp://HOST:PORT/APP/NAME       COUNT streams NAME0, NAME1, ..., RATE of them a second
 *
 * All have one timeline, so that a timestamp tells when its picture was sent, in whatever stream; but one that began
 * later than another sends its pictures at other moments.  Says "ready" when all are published; ends, with a line of
 * why, when a server closes one of them.
 */
#include "common.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK_BYTES = 65536, SHIFT_MS = 40 };

struct frame { uint32_t timestamp; size_t at, length; }; /* of a whole message in `messages`, with timestamp 0 */

static struct bytes messages;
static struct frame *frames;
static size_t frame_count;
static uint32_t duration;

struct stream { int fd; size_t next; uint32_t base; double begun; struct bytes unsent; };

static void read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die("%s: %s", path, strerror(errno));
    uint8_t head[13], tag[11];
    if (fread(head, 1, 13, file) != 13 || memcmp(head, "FLV", 3)) die("%s is no FLV file", path);
    for (size_t room = 0; fread(tag, 1, 11, file) == 11; frame_count++) {
        uint32_t length = big_endian(tag + 1, 3), time = big_endian(tag + 4, 3) | (uint32_t)tag[7] << 24;
        uint8_t *payload = grown(NULL, length + 4);
        if (fread(payload, 1, length + 4, file) != length + 4) die("%s ends in the middle", path);
        if (frame_count == room) frames = grown(frames, (room = room * 2 + 256) * sizeof *frames);
        frames[frame_count] = (struct frame){time, messages.count, 0};
        put_message(&messages, tag[0] == 9 ? 6 : 4, tag[0], 1, 0, payload, length, CHUNK_BYTES);
        frames[frame_count].length = messages.count - frames[frame_count].at;
        if (time + SHIFT_MS > duration) duration = time + SHIFT_MS;
        free(payload);
    }
    fclose(file);
}

static void whole(int fd, const struct bytes *out) {
    if (send(fd, out->at, out->count, MSG_NOSIGNAL) != (ssize_t)out->count) die("the server does not listen");
}

static void publish(struct stream *stream, const char *host, int port, const char *app, const char *name) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die("not an address: %s", host);
    stream->fd = socket(AF_INET, SOCK_STREAM, 0);
    int one = 1;
    setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(stream->fd, (struct sockaddr *)&address, sizeof address)) die("%s:%d: %s", host, port, strerror(errno));
    uint8_t hello[1 + HANDSHAKE_BYTES] = {3}, answer[1 + 2 * HANDSHAKE_BYTES];
    struct bytes out = {hello, sizeof hello, 0};
    whole(stream->fd, &out);
    if (recv(stream->fd, answer, sizeof answer, MSG_WAITALL) != sizeof answer) die("no handshake from %s:%d", host, port);
    out = (struct bytes){0};
    char place[64];
    uint8_t size[4] = {0, CHUNK_BYTES >> 16, CHUNK_BYTES >> 8 & 255, CHUNK_BYTES & 255};
    snprintf(place, sizeof place, "%s:%d", host, port);
    put_greeting(&out, answer + 1, place, app);
    put_command(&out, 1, 3, "publish", name, "live", NULL);
    put_message(&out, 2, 1, 0, 0, size, 4, CHUNK_BYTES);
    whole(stream->fd, &out);
    free(out.at);
    fcntl(stream->fd, F_SETFL, O_NONBLOCK);
}

/* Everything that is due; the time of what comes next. */
static double go_on(struct stream *stream) {
    for (;;) {
        struct frame *frame = &frames[stream->next];
        double due = stream->begun + (stream->base + frame->timestamp) / 1e3;
        if (due > now()) {
            if (stream->unsent.count) {
                ssize_t sent = send(stream->fd, stream->unsent.at, stream->unsent.count, MSG_NOSIGNAL);
                if (sent < 0 && errno != EAGAIN) die("a connection was closed: %s", strerror(errno));
                if (sent > 0) {
                    memmove(stream->unsent.at, stream->unsent.at + sent, stream->unsent.count - sent);
                    stream->unsent.count -= sent;
                }
                if (stream->unsent.count > 8 << 20) die("a server takes nothing");
            }
            uint8_t thrown_away[4096];
            while (recv(stream->fd, thrown_away, sizeof thrown_away, 0) > 0) {}
            return due;
        }
        uint32_t timestamp = stream->base + frame->timestamp;
        size_t at = stream->unsent.count;
        put(&stream->unsent, messages.at + frame->at, frame->length);
        for (int i = 0; i < 3; i++) stream->unsent.at[at + 1 + i] = timestamp >> (16 - 8 * i);
        if (++stream->next == frame_count) stream->next = 0, stream->base += duration;
    }
}

int main(int words, char **word) {
    char host[40], app[64], name[80];
    int port;
    program_name = "publisher";
    if (words != 5 || sscanf(word[4], "rtmp://%39[0-9.]:%d/%63[^/]/%63s", host, &port, app, name) != 4)
        die("publisher FILE COUNT RATE rtmp://HOST:PORT/APP/NAME");
    int count = atoi(word[2]);
    double rate = atof(word[3]);
    allow_descriptors();
    read_file(word[1]);
    if (!frame_count) die("%s is empty", word[1]);
    struct stream *streams = calloc(count, sizeof *streams);
    double begun = now();
    for (int i = 0; i < count; i++) {
        char numbered[96];
        snprintf(numbered, sizeof numbered, "%s%d", name, i);
        publish(&streams[i], host, port, app, numbered);
        usleep(1e6 / rate);
        streams[i].begun = begun;
        streams[i].base = (now() - begun) * 1e3;
        for (int before = 0; before <= i; before++) go_on(&streams[before]);
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        double next = now() + 0.02;
        for (int i = 0; i < count; i++) {
            double due = go_on(&streams[i]);
            if (due < next) next = due;
        }
        double wait = next - now();
        if (wait > 0) usleep(wait < 0.001 ? 1000 : wait * 1e6);
    }
}
