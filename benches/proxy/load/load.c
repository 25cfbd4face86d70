// The load generator: HTTP/1.1 over cleartext, one thread, for loopback.
//
//     load [EU_PORT US_PORT]
//
// With ports it also runs the app server (app.c) in its thread and polls without sleeping during a run, because a proxy that
// has to wake a sleeping peer pays for that in CPU time.
//
// Reads one command from standard input at a time, and prints `measuring` after the warm-up and `done …` at the end:
//
//     PORT CONNECTIONS WARM_UP_SECONDS SECONDS RATE REQUESTS SAMPLES
//
// RATE 0 is a closed loop: each connection sends its next request when it has the answer. Otherwise RATE is the number of
// requests per second of an open loop, and latency counts from the time at which a request was due. REQUESTS is a file of
// records (struct record, then the head). SAMPLES is a file for the latencies (struct sample), or `-`.
// Every answer is checked: status, length, and the first byte of the body, which names the region.

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "app.h"
#include "client.h"

#define EVENTS 512
#define OVERTIME 60000000000  // how much longer a run waits for its first answer, in nanoseconds
#define TIMER UINT32_MAX

struct plan {
    int port, connections;
    double warm_up, seconds, rate;
    char requests[512], samples[512];
};

static bool has_app;
static int epoll;
static struct sockaddr_in target;
static struct request *requests;
static size_t request_count, next_request;
static struct client *clients;
static uint32_t *idle;
static size_t idle_count;
static uint64_t due_count, started_count;

static void read_requests(const char *name)
{
    FILE *file = fopen(name, "rb");
    if (!file)
        fail(name);
    fseek(file, 0, SEEK_END);
    size_t size = ftell(file);
    rewind(file);
    char *content = malloc(size);
    if (fread(content, 1, size, file) != size)
        fail(name);
    fclose(file);
    requests = malloc(size); // more than enough: a record and its head are larger than a request
    for (request_count = next_request = 0; size; request_count++) {
        struct request *request = &requests[request_count];
        memcpy(&request->expected, content, sizeof request->expected);
        request->head = content + sizeof request->expected;
        size -= sizeof request->expected + request->expected.head_bytes;
        content += sizeof request->expected + request->expected.head_bytes;
    }
}

static void start(struct client *client, uint64_t begin)
{
    const struct request *request = &requests[next_request];
    next_request = (next_request + 1) % request_count;
    client_start(client, request, begin);
}

static uint64_t due_at(const struct plan *plan, uint64_t begin, uint64_t number)
{
    return begin + number * 1e9 / plan->rate;
}

// Starts the next request of a connection: at once in a closed loop, the oldest request that is due in an open loop.
static void go_on(const struct plan *plan, struct client *client, uint64_t begin)
{
    if (!plan->rate)
        start(client, now());
    else if (started_count < due_count)
        start(client, due_at(plan, begin, started_count++));
    else
        idle[idle_count++] = client->index;
}

static void handle(const struct plan *plan, struct client *client, uint32_t events, uint64_t begin)
{
    if ((events & EPOLLOUT) && client->is_busy)
        client_send(client);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    enum progress progress = client_receive(client);
    if (progress == WAITS)
        return;
    bool was_busy = client->is_busy || progress == ANSWERED;
    if (progress == BROKEN && was_busy)
        client_lost(client);
    if (progress == BROKEN || client->ends) {
        close(client->fd);
        client_open(client, epoll, client->index, &target);
    }
    if (was_busy)
        go_on(plan, client, begin);
}

static void start_due(const struct plan *plan, uint64_t begin)
{
    for (uint64_t time = now(); due_at(plan, begin, due_count) <= time;)
        due_count++;
    while (idle_count && started_count < due_count)
        start(&clients[idle[--idle_count]], due_at(plan, begin, started_count++));
}

// Wakes the loop twice a gap, at the times at which requests are due in between.
static int open_timer(const struct plan *plan)
{
    long gap = 1e9 / plan->rate / 2;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct itimerspec interval = {{0, gap < 1000000 ? gap : 1000000}, {0, 1}};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = TIMER};
    timerfd_settime(timer, 0, &interval, NULL);
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    return timer;
}

static void loop(const struct plan *plan, int timer)
{
    uint64_t begin = now(), measure = begin + plan->warm_up * 1e9, end = measure + plan->seconds * 1e9, ticks;
    struct epoll_event events[EVENTS];
    for (int index = 0; index < plan->connections; index++)
        go_on(plan, &clients[index], begin);
    for (;;) {
        if (has_app)
            app_serve(0);
        int count = epoll_wait(epoll, events, EVENTS, has_app ? 0 : 50);
        uint64_t time = now();
        if (time >= end && (tally.count || time >= end + OVERTIME))
            return;
        if (!tally.is_measuring && time >= measure) {
            tally.is_measuring = true;
            puts("measuring");
        }
        for (int index = 0; index < count; index++) {
            if (events[index].data.u32 != TIMER)
                handle(plan, &clients[events[index].data.u32], events[index].events, begin);
            else if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
                fail("timer");
        }
        if (plan->rate)
            start_due(plan, begin);
    }
}

static void write_samples(const char *name)
{
    if (!strcmp(name, "-"))
        return;
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(tally.samples, sizeof *tally.samples, tally.count, file) != tally.count || fclose(file))
        fail(name);
}

static void run(const struct plan *plan)
{
    target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(plan->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    epoll = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc(plan->connections, sizeof *clients);
    idle = calloc(plan->connections, sizeof *idle);
    idle_count = due_count = started_count = 0;
    tally.is_measuring = false;
    tally.count = tally.wrong = tally.bytes = 0;
    read_requests(plan->requests);
    for (int index = 0; index < plan->connections; index++)
        client_open(&clients[index], epoll, index, &target);
    int timer = plan->rate ? open_timer(plan) : -1;
    loop(plan, timer);
    printf("done requests=%zu wrong=%lu bytes=%lu\n", tally.count, (unsigned long)tally.wrong,
           (unsigned long)tally.bytes);
    write_samples(plan->samples);
    puts("ready");
    for (int index = 0; index < plan->connections; index++)
        close(clients[index].fd);
    if (timer >= 0)
        close(timer);
    close(epoll);
    free(clients);
    free(idle);
    free((char *)requests[0].head - sizeof(struct record)); // the content of the file
    free(requests);
}

int main(int count, char **arguments)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    has_app = count == 3;
    if (has_app)
        app_open(atoi(arguments[1]), atoi(arguments[2]));
    for (;;) {
        struct pollfd sources[2] = {{STDIN_FILENO, POLLIN, 0}, {has_app ? app_descriptor() : -1, POLLIN, 0}};
        char line[2048] = "";
        struct plan plan;
        poll(sources, 2, -1);
        if (sources[1].revents)
            app_serve(0);
        if (!sources[0].revents)
            continue;
        if (read(STDIN_FILENO, line, sizeof line - 1) <= 0)
            return 0;
        if (sscanf(line, "%d %d %lf %lf %lf %511s %511s", &plan.port, &plan.connections, &plan.warm_up, &plan.seconds, &plan.rate,
                   plan.requests, plan.samples) != 7) {
            fprintf(stderr, "cannot read the command: %s", line);
            return 2;
        }
        run(&plan);
    }
}
