"""Wait before the proxy is told to end: argv[1] seconds, or less where nobody listens at argv[2] any more.

Kubernetes stops the containers of a pod at the same time. Envoy goes on to hand connections over until its last one is
done, and each must find the proxy; without Envoy it is the Service that sends some more, until everybody has heard.
"""

import socket
import sys
import time

deadline = time.monotonic() + float(sys.argv[1])
while time.monotonic() < deadline:
    if len(sys.argv) > 2:
        host, port = sys.argv[2].split(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            break
        except OSError:
            pass  # it is busy
    time.sleep(0.2)
