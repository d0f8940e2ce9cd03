# SPDX-License-Identifier: MIT
"""A virtual EF10 network controller, for QEMU's ``vfio-user-pci`` or a user-mode kernel.

The kernel's unmodified ``sfc`` driver takes it for an SFC9140. Its source
(drivers/net/ethernet/sfc: ef10.c, ef10_regs.h, mcdi.c, mcdi_pcol.h) is the
specification, and its names are used here. The flow, outside in:

* ``server`` waits for everything there is to wait for and keeps the pace;
* ``transport`` speaks vfio-user; ``vhost`` vhost-user, with the PCI device over two
  ``virtqueue`` s that is ``pcidev``; ``stream`` is the socket of either;
* ``pci`` is the function's configuration space and interrupts, ``registers`` its
  doorbells, ``mcdi`` the mailbox of its management CPU and ``commands`` what that does;
* ``phy`` is the port with its cable, its link and its self-tests;
* ``device`` joins these with ``queues`` (rings in guest memory) and ``receive``, the path
  of a frame: ``offload`` (classes, checksums), ``stats``, ``steering``, and ``repeat``
  for streams that go round;
* ``memory`` is the one way into the guest (``faults`` lets it survive a client that
  takes memory away), ``wire`` the one way to the network.

Nothing the guest writes is trusted: an address outside its memory, a malformed
descriptor, command or message is counted, logged and answered with an error. What only
a mistake of the model can raise costs the frames, the request or the queue it happened
at; the counter ``internal_errors`` says that it did.
This package imports nothing of the rest of the harness.
"""
