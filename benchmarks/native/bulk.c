/* One TCP connection as fast as it goes.
 *
 *     bulk source PORT               sends for ever to whoever connects, one at a time, by sendfile
 *     bulk sink PORT SECONDS         connects, throws away what it gets (in the kernel), and says how much that was
 */
#include "common.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void source(const char *port) {
    struct sockaddr_in address = loopback(port);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, block = memfd_create("block", MFD_CLOEXEC);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (ftruncate(block, BLOCK) || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        die("can't listen: %s", strerror(errno));
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        for (off_t at = 0; sendfile(fd, block, &at, BLOCK - at) > 0;)
            if (at == BLOCK) at = 0;
        close(fd);
    }
}

static void sink(const char *port, double seconds) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) die("can't connect: %s", strerror(errno));
    if (send(fd, "x", 1, MSG_NOSIGNAL) != 1) die("nobody hears");
    uint64_t total = 0;
    double begun = now(), took;
    do {
        ssize_t got = recv(fd, NULL, BLOCK, MSG_TRUNC);
        if (got <= 0) die("the connection ended after %llu bytes", (unsigned long long)total);
        total += got;
    } while ((took = now() - begun) < seconds);
    printf("{\"bytes\": %llu, \"seconds\": %.3f}\n", (unsigned long long)total, took);
}

int main(int words, char **word) {
    program_name = "bulk";
    signal(SIGPIPE, SIG_IGN);
    if (words == 3 && !strcmp(word[1], "source")) source(word[2]);
    else if (words == 4 && !strcmp(word[1], "sink")) sink(word[2], atof(word[3]));
    else die("bulk source PORT | bulk sink PORT SECONDS");
}
