# SPDX-License-Identifier: MIT
"""A virtual EF10 network controller, for QEMU's ``vfio-user-pci`` or a user-mode kernel.

The kernel's unmodified ``sfc`` driver sees it as an SFC9140. The driver's source
(drivers/net/ethernet/sfc: ef10.c, ef10_regs.h, mcdi.c, mcdi_pcol.h) is the
specification; its names are used here. The flow, outside in:

* ``server`` has the event loop and paces the receive path;
* ``transport`` speaks vfio-user. ``vhost`` speaks vhost-user; ``pcidev`` is the PCI device
  over two ``virtqueue`` s. ``stream`` is the socket of both;
* ``pci`` is the function's configuration space and interrupts, ``registers`` its
  doorbells, ``mcdi`` the mailbox of its management CPU and ``commands`` its commands;
* ``phy`` is the port with its cable, its link and its self-tests, ``nvram`` the flash,
  ``sensors`` what hwmon shows; ``refused`` lists what is left out;
* ``injection`` brings faults about, on demand;
* ``device`` joins these with ``queues`` (rings in guest memory) and ``receive``, the path
  of a frame: ``offload`` (classes, checksums), ``stats``, ``steering``, and ``repeat``
  for repeated streams; ``transmit`` is the way back;
* ``datapath`` is that path in C, and ``compiled`` its calls: the same work for a fraction of
  the time, where the library was built;
* all accesses to the guest go through ``memory`` (``faults`` handles a client that
  takes memory away), all accesses to the network through ``wire``.

Nothing the guest writes is trusted: an address outside its memory, or a malformed
descriptor, command or message is counted, logged and answered with an error. A bug of the
model costs only the frames, the request or the queue where it occurred; the counter
``internal_errors`` counts it. This package imports nothing of the rest of the harness.
"""
