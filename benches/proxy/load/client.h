// A connection of the load generator: sends a request, reads the answer and checks it.

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A request in the file, followed by its head.
struct record {
    uint16_t status;
    char region; // first byte of the answer's body, or 0 for any
    uint32_t head_bytes;
    uint64_t body_bytes, answer_bytes; // answer_bytes 0: any length
};

struct request {
    struct record expected;
    const char *head;
};

struct client {
    int fd, epoll;
    uint32_t index;
    bool is_busy, wants_write, ends;
    const struct request *request;
    uint64_t begin, head_sent, body_sent;
    char head[4096];
    size_t head_length;
    bool in_body;
    int status;
    char first;
    uint64_t body_length, body_left;
};

// In nanoseconds; `begin` is a time of CLOCK_MONOTONIC.
struct sample {
    uint64_t begin, latency;
};

struct tally {
    bool is_measuring; // set after the warm-up; wrong answers count before it as well
    uint64_t wrong, bytes;
    struct sample *samples;
    size_t count, space;
};

enum progress { WAITS, ANSWERED, BROKEN };

extern struct tally tally;

uint64_t now(void);
void fail(const char *what);
void client_open(struct client *client, int epoll, uint32_t index, const struct sockaddr_in *target);
// `begin` is the time from which the latency counts.
void client_start(struct client *client, const struct request *request, uint64_t begin);
void client_send(struct client *client);
enum progress client_receive(struct client *client);
// Counts the request of a broken connection as wrong.
void client_lost(const struct client *client);
