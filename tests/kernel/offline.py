"""Runs a kernel in a network namespace of its own: brings the loopback interface up, executes cells, loads the base model.

Called by test_lives.py through `unshare --net`.
"""

import fcntl
import socket
import struct
import sys

from client import Kernel

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


def main():
    loopback_up()
    with socket.socket() as probe:
        probe.settimeout(2)
        assert probe.connect_ex(("1.1.1.1", 53)) != 0, "this is not offline"
    with Kernel("tunebook") as kernel:
        print("offline:", kernel.execute("20 + 22").text)
        model = kernel.execute('Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?', timeout=300)
        print("offline:", model.status, model.text[:60], model.stderr)
        return 0 if model.status == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
