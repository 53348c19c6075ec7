"""Builds the package. pyproject.toml says what it is; this says what is compiled.

With SNIPROXY_COMPILE=1 mypyc (which comes with mypy) turns the modules that every connection passes through into C
extensions of the same source, and `net/_calls.c` takes the place of `net/calls.py`. Without it nothing is compiled,
and nothing is missing. What needs a C compiler is the build; the wheel needs none.

GCC can lay that code out by what it does at work, which makes a connection cheaper the more so the colder its caches
are: with SNIPROXY_PROFILE=record the processes of the package leave counts beside its objects, in build/temp*, and with
SNIPROXY_PROFILE=use the same sources are compiled by them. bench/training.py has the work in between, and `make
compiled` does all three.

mypyc 2.4 compiles these modules right as long as no coroutine awaits inside an `except` block, no function gives one
name to exceptions of two types, and no class that derives from another has a `__call__`: the end-to-end tests run on
the compiled package, too (`make test-compiled`).
net/nameservers is left out, because in it `asyncio.timeout` does not end what it should.
"""

import os

from setuptools import Extension, setup

HOT_PATH = (
    "wire/need_more",
    "names",
    "value",
    "memo",
    "usual",
    "record",
    "ledger",
    "intake",
    "connection",
    "app",
    "wire/u16",
    "wire/client_hello",
    "wire/hello_records",
    "wire/hello_retry",
    "wire/proxy_protocol",
    "identity/spiffe",
    "identity/evidence",
    "policy/model",
    "policy/engine",
    "limits",
    "live",
    "net/timers",
    "net/rounds",
    "net/readiness",
    "net/strand",
    "net/sockets",
    "net/listener",
    "net/guard",
    "net/dns_cache",
    "net/resolver",
    "net/dial",
    "net/pipes",
    "net/relay",
    "observe/scoreboard",
    "observe/metrics",
    "observe/lines",
    "observe/text_lines",
    "observe/sinks",
    "observe/access_log",
    "observe/sketch",
    "observe/recent",
)

# The modules call each other inside one library. If its symbols were for others, too, each of these calls would look
# its target up in a table.
INSIDE = ["-fvisibility=hidden", "-fno-plt"]

# What the training did not do is compiled as it would be without; and a build that finds no counts fails.
PROFILE = {
    "": [],
    "record": ["-fprofile-generate"],
    "use": ["-fprofile-use", "-fprofile-partial-training", "-Werror=missing-profile"],
}

if os.environ.get("SNIPROXY_COMPILE") == "1":
    from mypyc.build import mypycify

    # All modules in one library, and beside it one for the name of each, of a line of code.
    library, *names = mypycify(["--strict", *(f"sniproxy/{module}.py" for module in HOT_PATH)], opt_level="3")
    calls = Extension("sniproxy.net._calls", ["sniproxy/net/_calls.c"])
    profile = PROFILE[os.environ.get("SNIPROXY_PROFILE", "")]
    library.extra_compile_args = [*library.extra_compile_args, *INSIDE, *profile]
    calls.extra_compile_args = profile
    library.extra_link_args = calls.extra_link_args = profile
    setup(ext_modules=[library, *names, calls])
else:
    setup()
