/* The calls of calls.py, in C: what they do, and why, stands there. tests/net/test_calls.py holds both to the same.

   Every socket here is non-blocking, so that no call of one waits, and none gives up the interpreter's lock: to give it
   up and take it back costs as much as some of these calls do. What recv() brings in goes through one buffer, which
   belongs to whoever has the lock. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECEIVE_MAX (64 * 1024)
#define OPTION_MAX 256
#define EVENTS_MAX 256

typedef struct {
    PyObject_HEAD
    int fd; /* -1 once it is closed */
    int family;
} Socket;

static PyTypeObject SocketType;

typedef union {
    struct sockaddr_storage storage; /* as large as any, and so what {0} fills */
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
} Address;

static PyObject *raise_errno(void) { return PyErr_SetFromErrno(PyExc_OSError); }

static int takes(const char *name, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most) {
    if (given >= least && given <= most)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments (%zd given)", name, least, most, given);
    return 0;
}

/* An int that is one in C, too. -1 with an exception set where it is not, or where one is set already: __index__ may be
   Python code, which must not run then. */
static int as_int(PyObject *number) {
    if (PyErr_Occurred())
        return -1;
    long value = PyLong_AsLong(number);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (value < INT_MIN || value > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the number is too large");
        return -1;
    }
    return (int)value;
}

static PyObject *new_socket(int fd, int family) {
    Socket *self = PyObject_New(Socket, &SocketType);
    if (self == NULL) {
        close(fd);
        return NULL;
    }
    self->fd = fd;
    self->family = family;
    return (PyObject *)self;
}

/* ---------------------------------------------------------------- what a socket does */

static PyObject *socket_fileno(Socket *self, PyObject *Py_UNUSED(none)) { return PyLong_FromLong(self->fd); }

static PyObject *socket_recv(Socket *self, PyObject *size) {
    static char buffer[RECEIVE_MAX];
    Py_ssize_t most = PyLong_AsSsize_t(size);
    if (most < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "negative buffersize in recv");
        return NULL;
    }
    ssize_t got;
    do
        got = recv(self->fd, buffer, most < RECEIVE_MAX ? (size_t)most : RECEIVE_MAX, 0);
    while (got < 0 && errno == EINTR);
    return got < 0 ? raise_errno() : PyBytes_FromStringAndSize(buffer, got);
}

static PyObject *socket_recv_into(Socket *self, PyObject *into) {
    Py_buffer view;
    if (PyObject_GetBuffer(into, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    ssize_t got;
    do
        got = recv(self->fd, view.buf, (size_t)view.len, 0);
    while (got < 0 && errno == EINTR);
    int error = errno;
    PyBuffer_Release(&view);
    errno = error;
    return got < 0 ? raise_errno() : PyLong_FromSsize_t(got);
}

/* Of `data` as many bytes as there are, or `most`. */
static PyObject *send_bytes(Socket *self, PyObject *data, Py_ssize_t most, int flags) {
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    size_t size = (size_t)(most < view.len ? most : view.len);
    ssize_t sent;
    do
        sent = send(self->fd, view.buf, size, flags | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    int error = errno;
    PyBuffer_Release(&view);
    errno = error;
    return sent < 0 ? raise_errno() : PyLong_FromSsize_t(sent);
}

static PyObject *socket_send(Socket *self, PyObject *const *args, Py_ssize_t count) {
    if (!takes("send", count, 1, 2))
        return NULL;
    int flags = count > 1 ? as_int(args[1]) : 0;
    if (flags == -1 && PyErr_Occurred())
        return NULL;
    return send_bytes(self, args[0], PY_SSIZE_T_MAX, flags);
}

static PyObject *socket_shutdown(Socket *self, PyObject *how) {
    int ways = as_int(how);
    if (ways == -1 && PyErr_Occurred())
        return NULL;
    if (shutdown(self->fd, ways) < 0)
        return raise_errno();
    Py_RETURN_NONE;
}

static PyObject *socket_close(Socket *self, PyObject *Py_UNUSED(none)) {
    int fd = self->fd;
    self->fd = -1;
    /* The descriptor is gone whatever close(2) says; what it says is of bytes that are lost, as a reset is. */
    if (fd >= 0 && close(fd) < 0 && errno != ECONNRESET)
        return raise_errno();
    Py_RETURN_NONE;
}

static PyObject *socket_getsockopt(Socket *self, PyObject *const *args, Py_ssize_t count) {
    char value[OPTION_MAX];
    if (!takes("getsockopt", count, 2, 3))
        return NULL;
    int level = as_int(args[0]), option = as_int(args[1]), size = count > 2 ? as_int(args[2]) : 0;
    if (PyErr_Occurred())
        return NULL;
    if (size < 0 || size > OPTION_MAX) {
        PyErr_SetString(PyExc_OSError, "getsockopt buflen out of range");
        return NULL;
    }
    int number = 0;
    socklen_t length = size ? (socklen_t)size : sizeof number;
    if (getsockopt(self->fd, level, option, size ? (void *)value : &number, &length) < 0)
        return raise_errno();
    return size ? PyBytes_FromStringAndSize(value, length) : PyLong_FromLong(number);
}

static PyObject *socket_setsockopt(Socket *self, PyObject *const *args, Py_ssize_t count) {
    if (!takes("setsockopt", count, 3, 3))
        return NULL;
    int level = as_int(args[0]), option = as_int(args[1]), failed;
    if (PyErr_Occurred())
        return NULL;
    if (PyLong_Check(args[2])) {
        int number = as_int(args[2]);
        if (number == -1 && PyErr_Occurred())
            return NULL;
        failed = setsockopt(self->fd, level, option, &number, sizeof number);
    } else {
        Py_buffer view;
        if (PyObject_GetBuffer(args[2], &view, PyBUF_SIMPLE) < 0)
            return NULL;
        failed = setsockopt(self->fd, level, option, view.buf, (socklen_t)view.len);
        int error = errno;
        PyBuffer_Release(&view);
        errno = error;
    }
    if (failed)
        return raise_errno();
    Py_RETURN_NONE;
}

/* Nobody forgets to close one; if somebody does, it is closed here, and said. */
static void socket_finalize(PyObject *object) {
    Socket *self = (Socket *)object;
    if (self->fd < 0)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_ResourceWarning(object, 1, "unclosed socket, descriptor %d", self->fd) < 0)
        PyErr_WriteUnraisable(object);
    close(self->fd);
    self->fd = -1;
    PyErr_Restore(type, value, traceback);
}

static void socket_dealloc(PyObject *object) {
    if (PyObject_CallFinalizerFromDealloc(object) == 0)
        PyObject_Free(object);
}

static PyMethodDef socket_methods[] = {
    {"fileno", (PyCFunction)socket_fileno, METH_NOARGS, NULL},
    {"recv", (PyCFunction)socket_recv, METH_O, NULL},
    {"recv_into", (PyCFunction)socket_recv_into, METH_O, NULL},
    {"send", (PyCFunction)(void (*)(void))socket_send, METH_FASTCALL, NULL},
    {"shutdown", (PyCFunction)socket_shutdown, METH_O, NULL},
    {"close", (PyCFunction)socket_close, METH_NOARGS, NULL},
    {"getsockopt", (PyCFunction)(void (*)(void))socket_getsockopt, METH_FASTCALL, NULL},
    {"setsockopt", (PyCFunction)(void (*)(void))socket_setsockopt, METH_FASTCALL, NULL},
    {0},
};

static PyMemberDef socket_members[] = {
    {"family", T_INT, offsetof(Socket, family), READONLY, NULL},
    {0},
};

static PyTypeObject SocketType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sniproxy.net._calls.Socket",
    .tp_doc = "A connected socket, or one that connects: made by accept() and connect(), never by its own name.",
    .tp_basicsize = sizeof(Socket),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = socket_dealloc,
    .tp_finalize = socket_finalize,
    .tp_methods = socket_methods,
    .tp_members = socket_members,
};

static PyObject *calls_send_first(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (!takes("send_first", count, 4, 4))
        return NULL;
    if (!Py_IS_TYPE(args[0], &SocketType)) {
        PyErr_SetString(PyExc_TypeError, "send_first() sends by a socket of accept() or connect()");
        return NULL;
    }
    int size = as_int(args[2]), flags = as_int(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "send_first() of fewer than no bytes");
        return NULL;
    }
    return send_bytes((Socket *)args[0], args[1], size, flags);
}

/* ---------------------------------------------------------------- where sockets come from */

static PyObject *host_of(const Address *address) {
    char text[INET6_ADDRSTRLEN];
    if (address->any.sa_family == AF_INET) {
        /* As inet_ntop(3), which takes 20 times as long, for it goes by way of printf. */
        const unsigned char *bytes = (const unsigned char *)&address->in.sin_addr;
        char *end = text;
        for (int i = 0; i < 4; i++) {
            if (i)
                *end++ = '.';
            if (bytes[i] >= 100)
                *end++ = '0' + bytes[i] / 100;
            if (bytes[i] >= 10)
                *end++ = '0' + bytes[i] / 10 % 10;
            *end++ = '0' + bytes[i] % 10;
        }
        return PyUnicode_DecodeASCII(text, end - text, NULL);
    }
    if (address->any.sa_family == AF_INET6) {
        if (inet_ntop(AF_INET6, &address->in6.sin6_addr, text, sizeof text) == NULL)
            return raise_errno();
        return PyUnicode_FromString(text);
    }
    return PyUnicode_New(0, 0);
}

/* The descriptor of a listener; -1 with an exception set where there is none. */
static int descriptor_of(PyObject *listener) {
    int fd = PyObject_AsFileDescriptor(listener);
    if (fd < 0 && PyErr_ExceptionMatches(PyExc_ValueError)) {
        /* It is closed, and its number -1: an error of the system, as for any other call. */
        PyErr_Clear();
        errno = EBADF;
        raise_errno();
    }
    return fd;
}

static PyObject *calls_accept(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (!takes("accept", count, 2, 2))
        return NULL;
    int listener = descriptor_of(args[0]), family = as_int(args[1]);
    if (PyErr_Occurred())
        return NULL;
    Address address = {0};
    socklen_t size = sizeof address;
    int fd;
    do
        fd = accept4(listener, &address.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            Py_RETURN_NONE;
        return raise_errno();
    }
    PyObject *sock = new_socket(fd, family);
    PyObject *host = sock ? host_of(&address) : NULL;
    PyObject *pair = host ? PyTuple_Pack(2, sock, host) : NULL;
    if (pair == NULL && sock != NULL)
        socket_close((Socket *)sock, NULL);
    Py_XDECREF(sock);
    Py_XDECREF(host);
    return pair;
}

static socklen_t make_address(Address *address, int family, const char *host, int port) {
    address->any.sa_family = family;
    if (family == AF_INET) {
        address->in.sin_port = htons(port);
        return inet_pton(AF_INET, host, &address->in.sin_addr) == 1 ? sizeof address->in : 0;
    }
    address->in6.sin6_port = htons(port);
    return family == AF_INET6 && inet_pton(AF_INET6, host, &address->in6.sin6_addr) == 1 ? sizeof address->in6 : 0;
}

static PyObject *calls_connect(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    static const int yes = 1, no = 0;
    if (!takes("connect", count, 3, 3))
        return NULL;
    int family = as_int(args[0]), port = as_int(args[2]);
    Py_ssize_t length;
    const char *host = PyErr_Occurred() ? NULL : PyUnicode_AsUTF8AndSize(args[1], &length);
    if (host == NULL)
        return NULL;
    if (port < 0 || port > 65535) {
        PyErr_SetString(PyExc_OverflowError, "port must be 0-65535");
        return NULL;
    }
    Address address = {0};
    socklen_t size = make_address(&address, family, host, port);
    if (size == 0 || strlen(host) != (size_t)length) { /* a NUL in it would hide what follows */
        errno = EINVAL;
        return raise_errno();
    }
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return raise_errno();
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0 &&
        setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &no, sizeof no) == 0 &&
        (connect(fd, &address.any, size) == 0 || errno == EINPROGRESS || errno == EINTR))
        return new_socket(fd, family);
    int error = errno;
    close(fd);
    errno = error;
    return raise_errno();
}

/* ---------------------------------------------------------------- who waits for them */

typedef struct {
    PyObject_HEAD
    int fd; /* -1 once it is closed */
} Epoll;

static PyTypeObject EpollType;

static PyObject *epoll_fromfd(PyObject *Py_UNUSED(type), PyObject *number) {
    int fd = as_int(number);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    Epoll *self = PyObject_New(Epoll, &EpollType);
    if (self != NULL)
        self->fd = fd;
    return (PyObject *)self;
}

static PyObject *control(Epoll *self, int operation, const char *name, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t wanted = operation == EPOLL_CTL_DEL ? 1 : 2;
    if (!takes(name, count, wanted, wanted))
        return NULL;
    struct epoll_event event = {0};
    int fd = as_int(args[0]);
    if (count > 1)
        event.events = (uint32_t)PyLong_AsUnsignedLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    event.data.fd = fd;
    if (epoll_ctl(self->fd, operation, fd, &event) < 0)
        return raise_errno();
    Py_RETURN_NONE;
}

static PyObject *epoll_register(Epoll *self, PyObject *const *args, Py_ssize_t count) {
    return control(self, EPOLL_CTL_ADD, "register", args, count);
}

static PyObject *epoll_modify(Epoll *self, PyObject *const *args, Py_ssize_t count) {
    return control(self, EPOLL_CTL_MOD, "modify", args, count);
}

static PyObject *epoll_unregister(Epoll *self, PyObject *const *args, Py_ssize_t count) {
    return control(self, EPOLL_CTL_DEL, "unregister", args, count);
}

/* Milliseconds, rounded up so that nobody wakes before his time; -1 is for ever. -2 with an exception set. */
static int milliseconds(PyObject *timeout) {
    if (timeout == Py_None)
        return -1;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -2;
    if (seconds < 0.0)
        return -1;
    double rounded = ceil(seconds * 1e3);
    return rounded < INT_MAX ? (int)rounded : INT_MAX;
}

static PyObject *event_list(const struct epoll_event *events, int count) {
    PyObject *list = PyList_New(count);
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *fd = PyLong_FromLong(events[i].data.fd), *mask = PyLong_FromUnsignedLong(events[i].events);
        PyObject *pair = fd && mask ? PyTuple_New(2) : NULL;
        if (pair == NULL) {
            Py_XDECREF(fd);
            Py_XDECREF(mask);
            Py_CLEAR(list);
            break;
        }
        PyTuple_SET_ITEM(pair, 0, fd);
        PyTuple_SET_ITEM(pair, 1, mask);
        PyList_SET_ITEM(list, i, pair);
    }
    return list;
}

/* Whether no other thread could want the interpreter: a thread is known to it before it starts to run. */
static int is_alone(void) {
    PyThreadState *first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    return PyThreadState_Next(first) == NULL;
}

/* The one call here that may wait: then other threads have the interpreter. A signal ends the wait, with no events. */
static PyObject *epoll_poll(Epoll *self, PyObject *const *args, Py_ssize_t count) {
    struct epoll_event events[EVENTS_MAX];
    if (!takes("poll", count, 2, 2))
        return NULL;
    int timeout = milliseconds(args[0]), most = timeout == -2 ? -1 : as_int(args[1]), ready;
    if (PyErr_Occurred())
        return NULL;
    if (most > EVENTS_MAX)
        most = EVENTS_MAX;
    if (timeout == 0 || is_alone()) {
        ready = epoll_wait(self->fd, events, most, timeout);
    } else {
        Py_BEGIN_ALLOW_THREADS
        ready = epoll_wait(self->fd, events, most, timeout);
        Py_END_ALLOW_THREADS
    }
    if (ready < 0 && errno != EINTR)
        return raise_errno();
    if (ready < 0 && PyErr_CheckSignals() < 0)
        return NULL;
    return event_list(events, ready < 0 ? 0 : ready);
}

static PyObject *epoll_close(Epoll *self, PyObject *Py_UNUSED(none)) {
    int fd = self->fd;
    self->fd = -1;
    if (fd >= 0 && close(fd) < 0)
        return raise_errno();
    Py_RETURN_NONE;
}

static void epoll_dealloc(Epoll *self) {
    if (self->fd >= 0)
        close(self->fd); /* in silence, as select.epoll does it */
    PyObject_Free(self);
}

static PyMethodDef epoll_methods[] = {
    {"fromfd", (PyCFunction)epoll_fromfd, METH_O | METH_CLASS, NULL},
    {"register", (PyCFunction)(void (*)(void))epoll_register, METH_FASTCALL, NULL},
    {"modify", (PyCFunction)(void (*)(void))epoll_modify, METH_FASTCALL, NULL},
    {"unregister", (PyCFunction)(void (*)(void))epoll_unregister, METH_FASTCALL, NULL},
    {"poll", (PyCFunction)(void (*)(void))epoll_poll, METH_FASTCALL, NULL},
    {"close", (PyCFunction)epoll_close, METH_NOARGS, NULL},
    {0},
};

static PyTypeObject EpollType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sniproxy.net._calls.Epoll",
    .tp_doc = "An epoll that was made by somebody else: see fromfd().",
    .tp_basicsize = sizeof(Epoll),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)epoll_dealloc,
    .tp_methods = epoll_methods,
};

static PyMethodDef functions[] = {
    {"accept", (PyCFunction)(void (*)(void))calls_accept, METH_FASTCALL, NULL},
    {"connect", (PyCFunction)(void (*)(void))calls_connect, METH_FASTCALL, NULL},
    {"send_first", (PyCFunction)(void (*)(void))calls_send_first, METH_FASTCALL, NULL},
    {0},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sniproxy.net._calls",
    .m_doc = "What sniproxy.net.calls has, in C.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__calls(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL || PyModule_AddType(made, &SocketType) < 0 || PyModule_AddType(made, &EpollType) < 0) {
        Py_XDECREF(made);
        return NULL;
    }
    return made;
}
