"""TAP interfaces: network interfaces whose other end is a file descriptor of this program.

See ``Documentation/networking/tuntap.rst`` of the kernel and ``netdevice(7)``. The interface exists
as long as the descriptor is open.
"""

from __future__ import annotations

import fcntl
import os
import struct

from testbed.links.htb import ShapingError, run_tool

TUN_DEVICE = "/dev/net/tun"
TUN_REMEDY = f"sudo modprobe tun; sudo chmod 0666 {TUN_DEVICE}"
PROBE = "tapprobe"
QUEUE_PACKETS = 10_000  # the kernel drops what is not read in time

# <linux/if_tun.h>, <linux/if.h>
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
IFREQ_TUN = struct.Struct("16sH22x")


def open_tap(interface: str, mac: str | None = None) -> int:
    """Makes a TAP interface in the network namespace of the calling thread.

    Args:
        interface: its name.
        mac: its address; None takes a random one.

    Returns:
        A non-blocking descriptor; one read or write is one Ethernet frame.

    Raises:
        OSError: there are no such interfaces here, or the name is taken.
        ShapingError: the interface could not be set up.
    """
    name = interface.encode()
    descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, IFREQ_TUN.pack(name, IFF_TAP | IFF_NO_PI))
        # ioctl(2) would do for this too, but only for root of the whole machine.
        options = ["txqueuelen", str(QUEUE_PACKETS), *(("address", mac) if mac else ())]
        run_tool("ip", "link", "set", "dev", interface, *options)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def tap_problem() -> str | None:
    """Makes a TAP interface in this network namespace and removes it again.

    Returns:
        Why that cannot be done, None if it can.
    """
    try:
        os.close(open_tap(PROBE))
    except (OSError, ShapingError) as error:
        return f"no TAP interface: {error}"
    return None
