// The app server behind every proxy: two regions, one thread.
//
//     app EU_PORT US_PORT
//
// The answer to `GET /body/N` has N bytes, every other answer 1 KiB. The bytes are `e` or `u`, for the region. A request names
// the region that must serve it in `Bench-Region`, and the length of its body in `Bench-Body`. If one of them is wrong, the
// answer is 421 or 400, so that every client detects a proxy that chose the wrong region or lost a part of a body.

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "app.h"

#define ANSWER_BYTES 1024
#define PATTERN_BYTES (256 << 10)
#define EVENTS 256

struct connection {
    int fd;
    bool is_listener;
    int region;
    char request[8192];
    size_t request_length;
    bool in_body;
    uint64_t body_left, body_received;
    char answer[512];
    size_t answer_at, answer_length;
    uint64_t answer_body_left;
};

static const char *const region_names[2] = {"eu", "us"};
static char patterns[2][PATTERN_BYTES];
static char received[PATTERN_BYTES];
static int epoll;

static void watch(int operation, struct connection *connection, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(epoll, operation, connection->fd, &event);
}

static void listen_on(int port, int region)
{
    int one = 1;
    struct connection *listener = calloc(1, sizeof *listener);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    listener->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    listener->is_listener = true;
    listener->region = region;
    setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener->fd, (struct sockaddr *)&address, sizeof address) || listen(listener->fd, 16384)) {
        perror("cannot listen");
        exit(1);
    }
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
}

void app_open(int eu_port, int us_port)
{
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int region = 0; region < 2; region++)
        memset(patterns[region], region_names[region][0], PATTERN_BYTES);
    listen_on(eu_port, 0);
    listen_on(us_port, 1);
}

int app_descriptor(void)
{
    return epoll;
}

static void accept_all(struct connection *listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *connection = calloc(1, sizeof *connection);
        connection->fd = fd;
        connection->region = listener->region;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(EPOLL_CTL_ADD, connection, EPOLLIN);
    }
}

// The value of a header field in a zero-terminated head, or NULL.
static const char *field(const char *head, const char *name)
{
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\r\n%s:", name);
    const char *found = strcasestr(head, pattern);
    if (!found)
        return NULL;
    found += strlen(pattern);
    return found + strspn(found, " ");
}

static uint64_t number(const char *value)
{
    return value ? strtoull(value, NULL, 10) : 0;
}

// Sends the rest of the answer. Returns false if the connection failed.
static bool flush(struct connection *connection)
{
    while (connection->answer_at < connection->answer_length || connection->answer_body_left) {
        size_t head = connection->answer_length - connection->answer_at;
        size_t body = connection->answer_body_left < PATTERN_BYTES ? connection->answer_body_left : PATTERN_BYTES;
        struct iovec parts[2] = {{connection->answer + connection->answer_at, head}, {patterns[connection->region], body}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(EPOLL_CTL_MOD, connection, EPOLLOUT);
            return true;
        }
        if (sent < 0)
            return false;
        size_t of_head = (size_t)sent < head ? (size_t)sent : head;
        connection->answer_at += of_head;
        connection->answer_body_left -= sent - of_head;
    }
    return true;
}

static bool answer(struct connection *connection)
{
    const char *region = field(connection->request, "bench-region");
    uint64_t length = ANSWER_BYTES;
    const char *status = "200 OK";
    if (region && strncmp(region, region_names[connection->region], 2)) {
        status = "421 Misdirected Request";
    } else if (field(connection->request, "transfer-encoding") ||
               number(field(connection->request, "bench-body")) != connection->body_received) {
        status = "400 Bad Request";
    } else if (!strncmp(connection->request, "GET /body/", 10)) {
        length = number(connection->request + 10);
    }
    connection->answer_at = 0;
    connection->answer_length = snprintf(connection->answer, sizeof connection->answer,
        "HTTP/1.1 %s\r\nServer: app\r\nDate: Sun, 22 Nov 2026 20:00:00 GMT\r\nContent-Type: application/json\r\n"
        "Cache-Control: no-store\r\nX-Upstream: %s\r\nContent-Length: %lu\r\n\r\n",
        status, region_names[connection->region], (unsigned long)length);
    connection->answer_body_left = length;
    connection->in_body = false;
    connection->request_length = 0;
    return flush(connection);
}

// Adds bytes to the head. Returns how many belong to the head, or -1 if it is too long.
static ssize_t read_head(struct connection *connection, const char *bytes, size_t length)
{
    size_t space = sizeof connection->request - 1 - connection->request_length, before = connection->request_length;
    size_t added = length < space ? length : space;
    memcpy(connection->request + before, bytes, added);
    connection->request[before + added] = 0;
    char *end = strstr(connection->request + (before > 3 ? before - 3 : 0), "\r\n\r\n");
    if (!end) {
        connection->request_length += added;
        return added == space ? -1 : (ssize_t)added;
    }
    end[2] = 0;
    connection->in_body = true;
    connection->body_left = number(field(connection->request, "content-length"));
    connection->body_received = 0;
    return end + 4 - connection->request - before;
}

// Returns false if the connection ends. No proxy sends a second request before it has the answer to the first.
static bool take(struct connection *connection, const char *bytes, size_t length)
{
    if (!connection->in_body) {
        ssize_t used = read_head(connection, bytes, length);
        if (used < 0)
            return false;
        if (!connection->in_body)
            return true;
        bytes += used;
        length -= used;
    }
    if (length > connection->body_left)
        return false;
    connection->body_left -= length;
    connection->body_received += length;
    return connection->body_left || answer(connection);
}

static bool serve(struct connection *connection, uint32_t events)
{
    if (events & EPOLLOUT) {
        watch(EPOLL_CTL_MOD, connection, EPOLLIN);
        return flush(connection);
    }
    for (;;) {
        ssize_t length = recv(connection->fd, received, sizeof received, 0);
        if (length < 0)
            return errno == EAGAIN;
        if (length == 0 || !take(connection, received, length))
            return false;
        if ((size_t)length < sizeof received)
            return true;
    }
}

void app_serve(int timeout)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, timeout);
    for (int index = 0; index < count; index++) {
        struct connection *connection = events[index].data.ptr;
        if (connection->is_listener) {
            accept_all(connection);
        } else if (!serve(connection, events[index].events)) {
            close(connection->fd);
            free(connection);
        }
    }
}

#ifndef APP_AS_LIBRARY
int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "usage: app EU_PORT US_PORT\n");
        return 2;
    }
    app_open(atoi(arguments[1]), atoi(arguments[2]));
    for (;;)
        app_serve(-1);
}
#endif
