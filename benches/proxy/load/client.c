#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

#define BUFFER_BYTES (256 << 10)
#define SOURCES 16 // client addresses, so that a connection per request does not run out of ports

struct tally tally;
static char received[BUFFER_BYTES], filler[BUFFER_BYTES];

uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int operation, struct client *client, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u32 = client->index};
    epoll_ctl(client->epoll, operation, client->fd, &event);
}

void client_open(struct client *client, int epoll, uint32_t index, const struct sockaddr_in *target)
{
    int one = 1;
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + index % SOURCES)};
    memset(client, 0, sizeof *client);
    client->epoll = epoll;
    client->index = index;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(client->fd, (struct sockaddr *)&source, sizeof source) ||
        connect(client->fd, (const struct sockaddr *)target, sizeof *target))
        fail("cannot connect");
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    watch(EPOLL_CTL_ADD, client, EPOLLIN);
}

void client_send(struct client *client)
{
    const struct record *expected = &client->request->expected;
    while (client->head_sent < expected->head_bytes || client->body_sent < expected->body_bytes) {
        size_t head = expected->head_bytes - client->head_sent;
        uint64_t body = expected->body_bytes - client->body_sent;
        struct iovec parts[2] = {{(char *)client->request->head + client->head_sent, head},
                                 {filler, body < BUFFER_BYTES ? body : BUFFER_BYTES}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t sent = sendmsg(client->fd, &message, MSG_NOSIGNAL);
        if (sent < 0) { // if the connection is broken, `client_receive` detects it
            if (errno == EAGAIN && !client->wants_write)
                watch(EPOLL_CTL_MOD, client, EPOLLIN | EPOLLOUT);
            client->wants_write = errno == EAGAIN;
            return;
        }
        size_t of_head = (size_t)sent < head ? (size_t)sent : head;
        client->head_sent += of_head;
        client->body_sent += sent - of_head;
        if (tally.is_measuring)
            tally.bytes += sent - of_head;
    }
    if (client->wants_write)
        watch(EPOLL_CTL_MOD, client, EPOLLIN);
    client->wants_write = false;
}

void client_start(struct client *client, const struct request *request, uint64_t begin)
{
    client->is_busy = true;
    client->request = request;
    client->begin = begin;
    client->head_sent = client->body_sent = client->head_length = 0;
    client->in_body = false;
    client->first = 0;
    client_send(client);
}

static void report_wrong(const struct client *client, const char *reason)
{
    if (tally.wrong++)
        return;
    const struct record *expected = &client->request->expected;
    fprintf(stderr, "%s: expected %d with %lu bytes of `%c`, got %d with %lu bytes of `%c`, for %.*s\n", reason, expected->status,
            (unsigned long)expected->answer_bytes, expected->region ? expected->region : '*', client->status,
            (unsigned long)client->body_length, client->first ? client->first : '-',
            (int)strcspn(client->request->head, "\r"), client->request->head);
}

void client_lost(const struct client *client)
{
    report_wrong(client, "connection lost or answer unreadable");
}

static void finish(struct client *client)
{
    const struct record *expected = &client->request->expected;
    client->is_busy = false;
    bool is_right = client->status == expected->status && (!expected->region || client->first == expected->region) &&
                    (!expected->answer_bytes || client->body_length == expected->answer_bytes) &&
                    client->body_sent == expected->body_bytes;
    if (!is_right)
        report_wrong(client, "wrong answer");
    if (!tally.is_measuring)
        return;
    if (tally.count == tally.space) {
        tally.space = tally.space ? tally.space * 2 : 1 << 20;
        tally.samples = realloc(tally.samples, tally.space * sizeof *tally.samples);
    }
    tally.samples[tally.count++] = (struct sample){client->begin, now() - client->begin};
}

// Adds bytes to the head of the answer. Returns how many belong to the head, or -1 if the answer cannot be read.
static ssize_t read_head(struct client *client, const char *from, size_t length)
{
    size_t before = client->head_length, space = sizeof client->head - 1 - before;
    size_t added = length < space ? length : space;
    memcpy(client->head + before, from, added);
    client->head[before + added] = 0;
    char *end = strstr(client->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
    if (!end) {
        client->head_length += added;
        return added == space ? -1 : (ssize_t)added;
    }
    end[2] = 0;
    const char *content_length = strcasestr(client->head, "\r\ncontent-length:");
    if (!content_length)
        return -1;
    client->in_body = true;
    client->status = atoi(client->head + 9);
    client->ends = strcasestr(client->head, "\r\nconnection: close");
    client->body_length = client->body_left = strtoull(content_length + 17, NULL, 10);
    return end + 4 - client->head - before;
}

static enum progress take(struct client *client, const char *from, size_t length)
{
    if (!client->is_busy)
        return BROKEN;
    if (!client->in_body) {
        ssize_t used = read_head(client, from, length);
        if (used < 0)
            return BROKEN;
        if (!client->in_body)
            return WAITS;
        from += used;
        length -= used;
    }
    if (length > client->body_left)
        return BROKEN;
    if (length && !client->first)
        client->first = *from;
    client->body_left -= length;
    if (tally.is_measuring)
        tally.bytes += length;
    if (client->body_left)
        return WAITS;
    finish(client);
    return ANSWERED;
}

enum progress client_receive(struct client *client)
{
    for (;;) {
        ssize_t length = recv(client->fd, received, sizeof received, 0);
        if (length < 0 && errno == EAGAIN)
            return WAITS;
        enum progress progress = length <= 0 ? BROKEN : take(client, received, length);
        if (progress != WAITS || (size_t)length < sizeof received)
            return progress;
    }
}
