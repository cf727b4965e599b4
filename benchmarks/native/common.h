/* What the benchmarks' programs share: time, growing arrays, and the words of an RTMP client. */
#ifndef COMMON_H
#define COMMON_H
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define HANDSHAKE_BYTES 1536

static const char *program_name;

static void die(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "%s: ", program_name);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(1);
}

static void *grown(void *old, size_t bytes) {
    void *grown_to = realloc(old, bytes);
    if (!grown_to) die("out of memory");
    return grown_to;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* As many descriptors as this process may have. */
static inline void allow_descriptors(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline uint32_t big_endian(const uint8_t *at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | at[i];
    return value;
}

struct bytes { uint8_t *at; size_t count, room; };

static void put(struct bytes *to, const void *from, size_t count) {
    if (to->count + count > to->room) {
        to->room = (to->count + count) * 2;
        to->at = grown(to->at, to->room);
    }
    if (count) memcpy(to->at + to->count, from, count);
    to->count += count;
}

static inline void put_string(struct bytes *to, const char *text) {
    uint8_t head[3] = {2, strlen(text) >> 8, strlen(text)};
    put(to, head, 3);
    put(to, text, strlen(text));
}

static inline void put_number(struct bytes *to, double value) {
    uint64_t bits;
    uint8_t out[9] = {0};
    memcpy(&bits, &value, 8);
    for (int i = 0; i < 8; i++) out[1 + i] = bits >> (56 - 8 * i);
    put(to, out, 9);
}

static inline void put_property(struct bytes *to, const char *name, const char *value) {
    uint8_t head[2] = {strlen(name) >> 8, strlen(name)};
    put(to, head, 2);
    put(to, name, strlen(name));
    put_string(to, value);
}

/* One message as chunks of at most chunk_size bytes. */
static inline void put_message(struct bytes *to, int chunk_stream, int type, int message_stream, uint32_t timestamp,
                               const uint8_t *payload, size_t length, size_t chunk_size) {
    uint8_t head[12] = {chunk_stream, timestamp >> 16, timestamp >> 8, timestamp, length >> 16, length >> 8, length,
                        type, message_stream, 0, 0, 0};
    put(to, head, 12);
    for (size_t at = 0; at < length; at += chunk_size) {
        uint8_t more = 0xC0 | chunk_stream;
        if (at) put(to, &more, 1);
        put(to, payload + at, length - at < chunk_size ? length - at : chunk_size);
    }
}

/* A command with a transaction id and null, and then: strings (name, or what else there is), up to NULL. */
static inline void put_command(struct bytes *to, int message_stream, int transaction, const char *name, ...) {
    struct bytes body = {0};
    put_string(&body, name);
    put_number(&body, transaction);
    put(&body, "\5", 1);
    va_list words;
    va_start(words, name);
    for (const char *word; (word = va_arg(words, const char *));) put_string(&body, word);
    va_end(words);
    put_message(to, 3, 20, message_stream, 0, body.at, body.count, 128);
    free(body.at);
}

/* connect and createStream, after the handshake's third part, which repeats their random bytes. */
static inline void put_greeting(struct bytes *to, const uint8_t *their_words, const char *place, const char *app) {
    struct bytes body = {0};
    char url[200];
    put(to, their_words, HANDSHAKE_BYTES);
    put_string(&body, "connect");
    put_number(&body, 1);
    put(&body, "\3", 1);
    put_property(&body, "app", app);
    snprintf(url, sizeof url, "rtmp://%s/%s", place, app);
    put_property(&body, "tcUrl", url);
    put(&body, "\0\0\11", 3);
    put_message(to, 3, 20, 0, 0, body.at, body.count, 128);
    free(body.at);
    put_command(to, 0, 2, "createStream", NULL);
}
#endif
