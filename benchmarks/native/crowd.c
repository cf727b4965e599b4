/* A crowd of viewers of one live stream, in one thread: it reads, judges and measures at a small part of a core.
 *
 *     cc -O2 -o crowd crowd.c        (C11 and Linux; benchmarks/crowd.py does that, and drives it)
 *
 * It is told what to do by lines on standard input, and answers each with one line of JSON.  It reads all the time, also
 * while nobody asks.
 *
 *     ref URL                    one viewer whose bytes are the measure of all: of a node that nobody breaks
 *     clock URL                  one viewer that is no measure but of time (see Lag)
 *     join COUNT RATE URL...     COUNT more viewers, RATE a second, two in turn to each URL; answers when each of them
 *                                has had a picture (and, with a reference, was found in it), or after 60 s
 *     run SECONDS                watch; answers with what happened since the last run
 *     behind SECONDS             how many have not, within that time, what the references have now
 *     leave                      close them all
 *
 * URLs are rtmp://HOST:PORT/APP/NAME and http://HOST:PORT/PATH (HTTP-FLV); HOST is an IPv4 address.
 *
 * Judgement.  All viewers of a log are sent the same bytes from some keyframe on.  A viewer looks for its first keyframe
 * (by timestamp) in the reference of its kind; from there on its bytes must be the reference's.  Besides, every viewer's
 * chunks or tags are parsed, headers only: a server whose bytes differ from viewer to viewer is measured as well.
 *
 * Lag.  Of each video frame: its arrival minus its timestamp, less the smallest such difference that any viewer, the
 * references included, has seen in this process's life.
 */
#include "common.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_BYTES = 1 << 20,
    CHUNK_STREAMS = 8,        /* that a server uses towards one viewer */
    EVENTS = 512,
    JOIN_SECONDS = 60,
    MAX_REFERENCE = 1 << 30,  /* bytes; a run is minutes long */
};
enum kind { RTMP, FLV };
enum state { SHAKING, HEAD, MEDIA };
enum verdict { FINE, CUT, WRONG };

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* ---------------------------------------------------------------- figures */

struct numbers { double *at; size_t count, room; };

static void note(struct numbers *to, double value) {
    if (to->count == to->room) {
        to->room = to->room ? to->room * 2 : 1024;
        to->at = grown(to->at, to->room * sizeof *to->at);
    }
    to->at[to->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest ranks, in milliseconds, less `base` seconds; the array is emptied. */
static void print_spread(const char *name, struct numbers *of, double base) {
    printf(", \"%s\": {\"count\": %zu", name, of->count);
    if (of->count) {
        qsort(of->at, of->count, sizeof *of->at, ascending);
        size_t last = of->count - 1;
        printf(", \"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f", (of->at[(size_t)(last * 0.5)] - base) * 1e3,
               (of->at[(size_t)(last * 0.99 + 0.5)] - base) * 1e3, (of->at[last] - base) * 1e3);
    }
    printf("}");
    of->count = 0;
}

/* ---------------------------------------------------------------- viewers */

/* A message in the making, on one chunk stream of RTMP; FLV tags use the first. */
struct message {
    uint32_t chunk_stream, timestamp, delta, length, left;
    uint8_t type, seen, first[4]; /* bytes of the payload, as many as are needed to know what it is */
    bool is_extended;
};

struct viewer {
    int fd;
    enum kind kind;
    enum state state;
    enum verdict verdict;
    bool is_reference, is_clock, has_picture;
    char app[64], name[128], place[64];
    double joined_at, arrived_at, longest;
    struct bytes unread;              /* before the media: what is not a whole answer yet */
    /* parsing */
    uint32_t chunk_size;
    uint8_t header[18];               /* of a chunk or tag, as far as it has come */
    int header_has, header_size;      /* header_size: of the last whole one */
    struct message messages[CHUNK_STREAMS], *current; /* current: its payload is being read */
    uint32_t in_chunk;                /* payload bytes left in this chunk */
    size_t message_at;                /* offset in the media bytes where the current message began */
    size_t media_bytes;               /* parsed */
    uint32_t window;                  /* RTMP: half of it is acknowledged each time, as ffmpeg does */
    size_t acknowledged;              /* of the media bytes */
    /* judgement */
    bool is_placed;
    size_t offset;                    /* in the reference: all before it was compared */
    struct bytes pending;             /* not compared: the reference has not got it yet */
    bool is_pending;                  /* the bytes from a keyframe on are kept */
    uint32_t keyframe;                /* its timestamp */
};

struct keyframe { uint32_t timestamp; size_t offset; };

/* The media bytes of a reference, all of them, and where its keyframes are. */
static struct { bool is_there; struct bytes bytes; struct keyframe *keyframes; size_t count, room; } references[2];

static struct viewer **viewers;
static size_t viewer_count, viewer_room, without_picture, unplaced;
static size_t cut_count, wrong_count;
static uint64_t window_bytes, window_frames;
static struct numbers lags, first_frames;
static double least_delay = 1e18;
static int epoll_fd;
static uint8_t buffer[READ_BYTES];

static void end(struct viewer *who, enum verdict verdict) {
    if (who->verdict != FINE) return;
    if (who->is_reference) die("the reference at %s has ended", who->place);
    who->verdict = verdict;
    if (verdict == CUT) cut_count++; else wrong_count++;
    if (!who->has_picture) without_picture--;
    if (references[who->kind].is_there && !who->is_placed) unplaced--;
    close(who->fd);
    who->fd = -1;
}

/* Compare what has come with the reference, as far as the reference goes. */
static void compare(struct viewer *who, const uint8_t *data, size_t count) {
    struct bytes *reference = &references[who->kind].bytes;
    if (who->pending.count) {
        put(&who->pending, data, count);
        data = who->pending.at;
        count = who->pending.count;
    }
    size_t known = reference->count - who->offset, compared = count < known ? count : known;
    if (memcmp(reference->at + who->offset, data, compared)) {
        end(who, WRONG);
        return;
    }
    who->offset += compared;
    if (who->pending.count) {
        memmove(who->pending.at, data + compared, count - compared);
        who->pending.count = count - compared;
    } else if (compared < count) {
        put(&who->pending, data + compared, count - compared);
    }
}

/* Where in the reference is the keyframe that the viewer keeps its bytes from? */
static void find_place(struct viewer *who) {
    for (size_t i = references[who->kind].count; i--;) {
        struct keyframe *keyframe = &references[who->kind].keyframes[i];
        if (keyframe->timestamp != who->keyframe) continue;
        who->is_placed = true;
        unplaced--;
        who->offset = keyframe->offset;
        compare(who, NULL, 0);
        return;
    }
    size_t count = references[who->kind].count;
    if (count && (int32_t)(who->keyframe - references[who->kind].keyframes[count - 1].timestamp) < 0) {
        who->is_pending = false; /* older than the reference: the next one */
        who->pending.count = 0;
    }
}

/* A video frame begins to be known: its first bytes are there. */
static void picture(struct viewer *who, struct message *of, double at) {
    uint8_t *first = of->first;
    bool is_enhanced = first[0] & 0x80, is_keyframe = (first[0] >> 4 & 7) == 1;
    int packet = is_enhanced ? first[0] & 15 : first[1];
    if (packet == 0 || (is_enhanced && packet == 4)) return; /* a sequence header; metadata */
    double delay = at - of->timestamp / 1e3;
    if (delay < least_delay) least_delay = delay;
    if (!who->is_reference) {
        note(&lags, delay);
        window_frames++;
    }
    if (!who->has_picture && !who->is_reference) {
        who->has_picture = true;
        without_picture--;
        note(&first_frames, at - who->joined_at);
    }
    if (!is_keyframe || who->is_clock) return;
    if (who->is_reference) {
        struct keyframe found = {of->timestamp, who->message_at};
        if (references[who->kind].count == references[who->kind].room) {
            references[who->kind].room = references[who->kind].room * 2 + 64;
            references[who->kind].keyframes =
                grown(references[who->kind].keyframes, references[who->kind].room * sizeof found);
        }
        references[who->kind].keyframes[references[who->kind].count++] = found;
    } else if (references[who->kind].is_there && !who->is_placed && !who->is_pending) {
        who->is_pending = true;
        who->keyframe = of->timestamp;
    }
}

/* ---------------------------------------------------------------- parsing media */

static void complete(struct viewer *who, struct message *of) {
    if (who->kind == RTMP && of->seen == 4) {
        if (of->type == 1) who->chunk_size = big_endian(of->first, 4) & 0x7FFFFFFF;
        if (of->type == 5) who->window = big_endian(of->first, 4);
    }
    who->current = NULL;
}

static struct message *on_chunk_stream(struct viewer *who, uint32_t id) {
    for (int i = 0; i < CHUNK_STREAMS; i++)
        if (who->messages[i].chunk_stream == id || !who->messages[i].chunk_stream) {
            who->messages[i].chunk_stream = id;
            return &who->messages[i];
        }
    return NULL;
}

/* A chunk's header, if it is whole; -1 if it is none. */
static int read_chunk_header(struct viewer *who) {
    static const int sizes[] = {11, 7, 3, 0};
    uint8_t *head = who->header;
    int format = head[0] >> 6, has = who->header_has, at = 1;
    uint32_t id = head[0] & 63;
    if (id < 2) { /* two- and three-byte basic headers */
        at = id + 2;
        if (has < at) return 0;
        id = 64 + head[1] + (id ? head[2] * 256u : 0);
    }
    int size = at + sizes[format];
    if (has < size) return 0;
    struct message *of = on_chunk_stream(who, id);
    if (!of) return -1;
    uint32_t time = format < 3 ? big_endian(head + at, 3) : 0;
    bool is_extended = format < 3 ? time == 0xFFFFFF : of->is_extended;
    if (is_extended) {
        if (has < size + 4) return 0;
        time = big_endian(head + size, 4);
    }
    of->is_extended = is_extended;
    bool begins = !of->left;
    if (format < 2) {
        of->length = big_endian(head + at + 3, 3);
        of->type = head[at + 6];
    }
    if (format == 0) of->timestamp = time, of->delta = 0;
    else if (format < 3) of->delta = time, of->timestamp += time;
    else if (begins) of->timestamp += of->delta;
    if (begins) {
        of->left = of->length;
        of->seen = 0;
        who->message_at = who->media_bytes - has;
    }
    who->in_chunk = of->left < who->chunk_size ? of->left : who->chunk_size;
    who->current = of;
    return 1;
}

/* The same for a tag of FLV: the size of the tag before it, 4 bytes, is read with it, as its beginning. */
static int read_tag_header(struct viewer *who) {
    uint8_t *head = who->header;
    if (who->header_has < 11) return 0;
    struct message *of = &who->messages[0];
    of->type = head[0] & 31;
    of->length = big_endian(head + 1, 3);
    of->timestamp = big_endian(head + 4, 3) | (uint32_t)head[7] << 24;
    if (of->type != 8 && of->type != 9 && of->type != 18) return -1;
    of->left = who->in_chunk = of->length + 4;
    of->seen = 0;
    who->message_at = who->media_bytes - 11;
    who->current = of;
    return 1;
}

static void parse(struct viewer *who, const uint8_t *data, size_t count, double at) {
    const uint8_t *keep_from = who->is_pending ? data : NULL;
    for (const uint8_t *next = data, *stop = data + count; next < stop && who->verdict == FINE;) {
        if (!who->current) {
            who->header[who->header_has++] = *next++;
            who->media_bytes++;
            int done = who->kind == RTMP ? read_chunk_header(who) : read_tag_header(who);
            if (done < 0 || (!done && who->header_has == sizeof who->header)) end(who, WRONG);
            if (done) {
                who->header_size = who->header_has;
                who->header_has = 0;
            }
            if (done > 0 && !who->current->left) complete(who, who->current);
            continue;
        }
        struct message *of = who->current;
        size_t room = stop - next, take = who->in_chunk < room ? who->in_chunk : room;
        if (of->seen < 4) {
            if (take > 4u - of->seen) take = 4 - of->seen;
            memcpy(of->first + of->seen, next, take);
            of->seen += take;
            uint32_t known = of->length < 2 ? of->length : 2; /* frame type and packet type */
            if (of->type == 9 && of->seen >= known && of->seen - take < known) picture(who, of, at);
            if (who->is_pending && !keep_from) { /* the message may have begun in an earlier read */
                put(&who->pending, who->header, who->header_size);
                put(&who->pending, of->first, of->seen);
                keep_from = next + take;
            }
        }
        next += take;
        who->media_bytes += take;
        of->left -= take;
        who->in_chunk -= take;
        if (!of->left) complete(who, of);
        else if (!who->in_chunk) who->current = NULL; /* its next chunk has a header of its own */
    }
    if (who->verdict != FINE) return;
    if (who->is_placed) compare(who, data, count);
    else if (who->is_pending && keep_from) {
        put(&who->pending, keep_from, data + count - keep_from);
        find_place(who);
    }
}

static void say(struct viewer *who, const struct bytes *words) {
    if (send(who->fd, words->at, words->count, MSG_NOSIGNAL) != (ssize_t)words->count) end(who, CUT);
}

static void acknowledge(struct viewer *who) {
    struct bytes out = {0};
    size_t all = who->acknowledged = who->media_bytes;
    uint8_t count[4] = {all >> 24, all >> 16, all >> 8, all};
    put_message(&out, 2, 3, 0, 0, count, sizeof count, 128);
    say(who, &out);
    free(out.at);
}

static void media(struct viewer *who, const uint8_t *data, size_t count, double at) {
    if (!count) return;
    if (who->is_reference && !who->is_clock) {
        struct bytes *bytes = &references[who->kind].bytes;
        if (bytes->count + count > MAX_REFERENCE) die("the run is too long: the reference has %zu bytes", bytes->count);
        put(bytes, data, count);
    }
    parse(who, data, count, at);
    if (who->verdict == FINE && who->window && who->media_bytes - who->acknowledged >= who->window / 2) acknowledge(who);
}

/* ---------------------------------------------------------------- conversation */

/* connect, createStream and play in one breath: each is answered in its order. */
static void ask_to_play(struct viewer *who, const uint8_t *their_words) {
    struct bytes out = {0};
    put_greeting(&out, their_words, who->place, who->app);
    put_command(&out, 1, 3, "play", who->name, NULL);
    say(who, &out);
    free(out.at);
}

/* What comes before the media. */
static void converse(struct viewer *who, const uint8_t *data, size_t count, double at) {
    put(&who->unread, data, count);
    struct bytes *unread = &who->unread;
    size_t used = 0;
    if (who->kind == RTMP) {
        if (who->state == SHAKING && unread->count >= 1 + HANDSHAKE_BYTES) {
            who->state = HEAD;
            ask_to_play(who, unread->at + 1);
        }
        used = 1 + 2 * HANDSHAKE_BYTES;
    } else {
        uint8_t *blank = memmem(unread->at, unread->count, "\r\n\r\n", 4);
        if (!blank) return;
        if (unread->count < 12 || memcmp(unread->at + 9, "200", 3)) {
            end(who, CUT);
            return;
        }
        who->state = HEAD;
        used = blank + 4 - unread->at + 13; /* the file's header, and the size of no tag before the first */
    }
    if (who->verdict != FINE || unread->count < used) return;
    who->state = MEDIA;
    media(who, unread->at + used, unread->count - used, at);
    free(unread->at);
    *unread = (struct bytes){0};
}

static void readable(struct viewer *who) {
    ssize_t count = recv(who->fd, buffer, sizeof buffer, 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
        end(who, CUT);
        return;
    }
    double at = now();
    if (who->arrived_at && at - who->arrived_at > who->longest) who->longest = at - who->arrived_at;
    who->arrived_at = at;
    if (!who->is_reference) window_bytes += count;
    if (who->state == MEDIA) media(who, buffer, count, at);
    else converse(who, buffer, count, at);
}

static void join(const char *url, bool is_reference, bool is_clock) {
    char host[40];
    int port, path_at = 0;
    bool is_rtmp = !strncmp(url, "rtmp://", 7);
    if (sscanf(url + 7, "%39[0-9.]:%d/%n", host, &port, &path_at) < 2 || !path_at) die("not a URL: %s", url);
    const char *path = url + 7 + path_at, *slash = strrchr(path, '/');
    struct viewer *who = calloc(1, sizeof *who);
    if (!who) die("out of memory");
    who->kind = is_rtmp ? RTMP : FLV;
    who->chunk_size = 128;
    who->is_reference = is_reference;
    who->is_clock = is_clock;
    snprintf(who->place, sizeof who->place, "%s:%d", host, port);
    if (is_rtmp) {
        if (!slash || slash - path >= (long)sizeof who->app || strlen(slash + 1) >= sizeof who->name)
            die("not a URL: %s", url);
        memcpy(who->app, path, slash - path);
        strcpy(who->name, slash + 1);
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die("not an address: %s", host);
    who->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (who->fd < 0) die("no more descriptors: %s", strerror(errno));
    int one = 1;
    setsockopt(who->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (viewer_count == viewer_room) {
        viewer_room = viewer_room * 2 + 64;
        viewers = grown(viewers, viewer_room * sizeof *viewers);
    }
    viewers[viewer_count++] = who;
    if (!is_reference) without_picture++;
    if (is_reference) references[who->kind].is_there |= !is_clock;
    else if (references[who->kind].is_there) unplaced++;
    who->joined_at = now();
    if (connect(who->fd, (struct sockaddr *)&address, sizeof address)) {
        end(who, CUT);
        return;
    }
    fcntl(who->fd, F_SETFL, O_NONBLOCK);
    struct bytes hello = {0};
    if (is_rtmp) {
        uint8_t words[1 + HANDSHAKE_BYTES] = {3};
        put(&hello, words, sizeof words);
    } else {
        char request[400];
        int length = snprintf(request, sizeof request, "GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n", path, who->place);
        if (length >= (int)sizeof request) die("too long: %s", url);
        put(&hello, request, length);
    }
    say(who, &hello);
    free(hello.at);
    if (who->verdict != FINE) return;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = who};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, who->fd, &event);
}

/* ---------------------------------------------------------------- commands */

static enum { NOTHING, JOINING, RUNNING, CATCHING_UP } doing;
static double until, begun, cpu_begun;
static char urls[8][256];
static size_t url_count, joins_left, joined;
static double join_rate;
static size_t goals[2];

static size_t count_behind(void) {
    size_t behind = 0;
    for (size_t i = 0; i < viewer_count; i++) {
        struct viewer *who = viewers[i];
        if (who->is_reference || who->verdict != FINE || !references[who->kind].is_there) continue;
        behind += !who->is_placed || who->offset < goals[who->kind];
    }
    return behind;
}

static void answer_join(void) {
    printf("{\"joined\": %zu, \"without_picture\": %zu, \"unplaced\": %zu, \"cut\": %zu, \"wrong\": %zu, "
           "\"seconds\": %.3f", joined, without_picture, unplaced, cut_count, wrong_count, now() - begun);
    print_spread("first_frame_ms", &first_frames, 0);
    puts("}");
    fflush(stdout);
    doing = NOTHING;
}

static void answer_run(void) {
    double at = now();
    struct numbers pauses = {0};
    size_t alive = 0;
    for (size_t i = 0; i < viewer_count; i++) {
        struct viewer *who = viewers[i];
        if (who->is_reference || who->verdict != FINE) continue;
        alive++;
        if (who->arrived_at && at - who->arrived_at > who->longest) who->longest = at - who->arrived_at;
        note(&pauses, who->longest);
        who->longest = 0;
    }
    printf("{\"seconds\": %.3f, \"cpu_seconds\": %.3f, \"alive\": %zu, \"cut\": %zu, \"wrong\": %zu, "
           "\"bytes\": %llu, \"frames\": %llu", at - begun, cpu_seconds() - cpu_begun, alive, cut_count, wrong_count,
           (unsigned long long)window_bytes, (unsigned long long)window_frames);
    print_spread("pause_ms", &pauses, 0);
    print_spread("lag_ms", &lags, least_delay);
    puts("}");
    fflush(stdout);
    free(pauses.at);
    window_bytes = window_frames = 0;
    begun = at;
    cpu_begun = cpu_seconds();
    doing = NOTHING;
}

static void command(char *line) {
    char *word = strtok(line, " \n");
    if (!word) return;
    if (!strcmp(word, "ref") || !strcmp(word, "clock")) {
        join(strtok(NULL, " \n"), true, word[0] == 'c');
        puts("{}");
        fflush(stdout);
    } else if (!strcmp(word, "join")) {
        joins_left = strtoul(strtok(NULL, " \n"), NULL, 10);
        join_rate = strtod(strtok(NULL, " \n"), NULL);
        for (url_count = 0; url_count < 8 && (word = strtok(NULL, " \n")); url_count++)
            snprintf(urls[url_count], sizeof urls[0], "%s", word);
        joined = 0;
        begun = now();
        until = begun + JOIN_SECONDS + joins_left / join_rate;
        doing = JOINING;
    } else if (!strcmp(word, "run")) {
        until = now() + strtod(strtok(NULL, " \n"), NULL);
        doing = RUNNING;
    } else if (!strcmp(word, "behind")) {
        until = now() + strtod(strtok(NULL, " \n"), NULL);
        for (int kind = 0; kind < 2; kind++) goals[kind] = references[kind].bytes.count;
        doing = CATCHING_UP;
    } else if (!strcmp(word, "leave")) {
        exit(0);
    } else {
        die("no such command: %s", word);
    }
}

/* What the command under way wants done now; how long the next wait may be, in milliseconds. */
static int go_on(void) {
    double at = now();
    if (doing == JOINING) {
        while (joins_left && joined <= (at - begun) * join_rate) {
            join(urls[(joined / 2 + joined % 2) % url_count], false, false);
            joined++;
            joins_left--;
        }
        if (joins_left) return 1;
        if ((!without_picture && !unplaced) || at > until) answer_join();
    } else if (doing == RUNNING && at >= until) {
        answer_run();
    } else if (doing == CATCHING_UP) {
        size_t behind = count_behind();
        if (!behind || at >= until) {
            printf("{\"behind\": %zu}\n", behind);
            fflush(stdout);
            doing = NOTHING;
        }
    }
    return doing == NOTHING ? 1000 : doing == RUNNING && until - at > 0.02 ? 20 : 2;
}

/* Those that are ahead of their reference, or wait for its keyframe. */
static void look_again(void) {
    for (size_t i = 0; i < viewer_count; i++) {
        struct viewer *who = viewers[i];
        if (who->verdict != FINE || !who->pending.count) continue;
        if (who->is_placed) compare(who, NULL, 0);
        else if (who->is_pending) find_place(who);
    }
}

int main(void) {
    program_name = "crowd";
    allow_descriptors();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS], input = {.events = EPOLLIN, .data.ptr = NULL};
    fcntl(0, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &input);
    char line[4096];
    size_t has = 0;
    for (double looked_at = 0;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, go_on());
        for (int i = 0; i < count; i++) {
            struct viewer *who = events[i].data.ptr;
            if (who) {
                if (who->verdict == FINE) readable(who);
                continue;
            }
            ssize_t got = read(0, line + has, sizeof line - 1 - has);
            if (got == 0) return 0; /* whoever drives us has ended */
            if (got > 0) has += got;
            line[has] = 0;
            for (char *newline; (newline = memchr(line, '\n', has));) {
                char one[4096];
                size_t length = newline + 1 - line;
                memcpy(one, line, length);
                one[length] = 0;
                memmove(line, line + length, has - length + 1);
                has -= length;
                command(one);
            }
        }
        if (now() - looked_at > 0.01) {
            look_again();
            looked_at = now();
        }
    }
}
