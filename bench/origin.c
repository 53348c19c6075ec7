/*
 * origin: the server behind the proxy under test.
 *
 *     origin PORT ADDRESS,EXPECT,SEND,END ...
 *
 * One epoll loop, no TLS: nothing that a proxy relays depends on what the bytes mean. Each ADDRESS that it
 * listens on has a script: read EXPECT bytes (the ClientHello, and an upload after it), send SEND bytes, and
 * then END:
 *
 *     close   send FIN, wait for the proxy's FIN, close: the origin ends the connection first
 *     duplex  the same, but while it sends it takes as many bytes as it sends, and its FIN waits for the last of them
 *     echo    send back whatever comes, until the proxy ends it
 *
 * A script a listening address lets one port serve every workload, so that a proxy needs one config: the name
 * in the ClientHello chooses the address, and the address chooses the script.
 *
 * It prints "ready" when every address is listening, and runs until SIGTERM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096, EVENTS = 256, BUFFER = 256 * 1024 };
enum end { END_CLOSE, END_DUPLEX, END_ECHO };

/* What epoll hands back: a listener (its script is the one it gives to those it accepts) or a connection. */
struct endpoint {
    int fd;
    int listening;
    uint32_t interest;
    enum end end;
    uint64_t expect; /* bytes still to be read before the answer */
    uint64_t send;   /* bytes of the answer still to be sent */
    uint64_t take;   /* duplex: bytes still to come meanwhile */
    int finished;    /* our FIN is out */
};

static int epoll_fd;
static char reply[BUFFER];
static char scratch[BUFFER];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(struct endpoint *e, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.ptr = e};
    if (e->interest == interest)
        return;
    if (epoll_ctl(epoll_fd, e->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, e->fd, &event) < 0)
        die("epoll_ctl");
    e->interest = interest;
}

static void drop(struct endpoint *e)
{
    close(e->fd);
    free(e);
}

/* Sends what the script still owes, a buffer a turn, so that reading has its turn too. Returns 0 when the connection
 * broke. */
static int answer(struct endpoint *e)
{
    if (e->send > 0) {
        size_t want = e->send < BUFFER ? e->send : BUFFER;
        ssize_t n = send(e->fd, reply, want, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            return 0;
        if (n > 0)
            e->send -= (uint64_t)n;
    }
    watch(e, e->send > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
    if (e->end != END_ECHO && e->send == 0 && e->take == 0 && !e->finished) {
        shutdown(e->fd, SHUT_WR);
        e->finished = 1;
    }
    return 1;
}

/* An echo is a few hundred bytes, one at a time: it always fits the socket's buffer. */
static int echo(struct endpoint *e, ssize_t n)
{
    return send(e->fd, scratch, (size_t)n, MSG_NOSIGNAL) == n;
}

static int readable(struct endpoint *e)
{
    ssize_t n = recv(e->fd, scratch, BUFFER, 0);
    if (n < 0)
        return errno == EAGAIN;
    if (n == 0)
        return 0;
    if (e->expect == 0 && e->end == END_ECHO)
        return echo(e, n);
    /* What comes behind the hello, perhaps in one read with it, is what duplex waits for. */
    uint64_t came = (uint64_t)n, of_hello = came < e->expect ? came : e->expect;
    int owes = e->expect > 0 || e->take > 0;
    e->expect -= of_hello;
    came -= of_hello;
    e->take -= came < e->take ? came : e->take;
    return !owes || e->expect > 0 || answer(e);
}

static void serve(struct endpoint *e, uint32_t events)
{
    if ((events & EPOLLOUT) && e->expect == 0 && !answer(e)) {
        drop(e);
        return;
    }
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !readable(e))
        drop(e);
}

static void accept_all(struct endpoint *listener)
{
    int fd;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct endpoint *e = malloc(sizeof *e);
        if (!e)
            die("malloc");
        *e = *listener;
        e->fd = fd;
        e->listening = 0;
        e->interest = 0;
        watch(e, EPOLLIN);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("accept4");
}

static enum end parse_end(const char *word)
{
    if (strcmp(word, "close") == 0)
        return END_CLOSE;
    if (strcmp(word, "duplex") == 0)
        return END_DUPLEX;
    if (strcmp(word, "echo") == 0)
        return END_ECHO;
    fprintf(stderr, "origin: no such end: %s\n", word);
    exit(2);
}

static void listen_at(int port, const char *script)
{
    char host[64], end[16];
    int one = 1;
    struct endpoint *e = calloc(1, sizeof *e);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

    if (!e)
        die("calloc");
    if (sscanf(script, "%63[^,],%" SCNu64 ",%" SCNu64 ",%15s", host, &e->expect, &e->send, end) != 4 ||
        inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "origin: not ADDRESS,EXPECT,SEND,END: %s\n", script);
        exit(2);
    }
    e->end = parse_end(end);
    e->take = e->end == END_DUPLEX ? e->send : 0;
    e->listening = 1;
    e->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(e->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(e->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* inherited by those accepted */
    if (e->fd < 0 || bind(e->fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(e->fd, BACKLOG) < 0)
        die(script);
    watch(e, EPOLLIN);
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS];

    if (argc < 3) {
        fprintf(stderr, "usage: origin PORT ADDRESS,EXPECT,SEND,END ...\n");
        return 2;
    }
    for (size_t i = 0; i < BUFFER; i++)
        reply[i] = (char)(i % 251); /* load.c expects this very pattern */
    epoll_fd = epoll_create1(0);
    for (int i = 2; i < argc; i++)
        listen_at(atoi(argv[1]), argv[i]);
    puts("ready");
    fflush(stdout);

    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct endpoint *e = events[i].data.ptr;
            if (e->listening)
                accept_all(e);
            else
                serve(e, events[i].events);
        }
    }
}
