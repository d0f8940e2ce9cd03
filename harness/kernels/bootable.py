# SPDX-License-Identifier: MIT
"""Checks that a kernel's configuration has the drivers that a host needs to boot."""

from __future__ import annotations

from collections.abc import Mapping

from harness.base.errors import ConfigurationError
from harness.config import Kernel
from harness.kernels.configuration import chosen, options

# Module to option, from the Makefiles of drivers/{ata,nvme,scsi,block,md,net,usb,mmc}, fs and
# virtio. Modules that are not listed are not checked: their names do not tell the option.
OPTIONS = {
    "ahci": "SATA_AHCI", "ata_piix": "ATA_PIIX", "libata": "ATA", "nvme": "BLK_DEV_NVME",
    "sd_mod": "BLK_DEV_SD", "scsi_mod": "SCSI", "megaraid_sas": "MEGARAID_SAS",
    "mpt3sas": "SCSI_MPT3SAS", "mpi3mr": "SCSI_MPI3MR", "smartpqi": "SCSI_SMARTPQI",
    "hpsa": "SCSI_HPSA", "aacraid": "SCSI_AACRAID", "arcmsr": "SCSI_ARCMSR",
    "isci": "SCSI_ISCI", "pm80xx": "SCSI_PM8001", "qla2xxx": "SCSI_QLA_FC", "lpfc": "SCSI_LPFC",
    "virtio_pci": "VIRTIO_PCI", "virtio_blk": "VIRTIO_BLK", "virtio_scsi": "SCSI_VIRTIO",
    "virtio_net": "VIRTIO_NET", "vmw_pvscsi": "VMWARE_PVSCSI", "vmd": "VMD",
    "usb_storage": "USB_STORAGE", "uas": "USB_UAS", "xhci_pci": "USB_XHCI_PCI",
    "ehci_pci": "USB_EHCI_PCI", "mmc_block": "MMC_BLOCK", "sdhci_pci": "MMC_SDHCI_PCI",
    "dm_mod": "BLK_DEV_DM", "dm_crypt": "DM_CRYPT", "linear": "MD_LINEAR", "raid0": "MD_RAID0",
    "raid1": "MD_RAID1", "raid10": "MD_RAID10", "raid456": "MD_RAID456",
    "ext4": "EXT4_FS", "ext3": "EXT4_FS", "xfs": "XFS_FS", "btrfs": "BTRFS_FS",
    "f2fs": "F2FS_FS", "jfs": "JFS_FS", "nfs": "NFS_FS", "nfs4": "NFS_V4",
    "overlay": "OVERLAY_FS", "squashfs": "SQUASHFS",
    "sfc": "SFC", "sfc_siena": "SFC_SIENA", "sfc_falcon": "SFC_FALCON", "ixgbe": "IXGBE",
    "ixgbevf": "IXGBEVF", "i40e": "I40E", "iavf": "IAVF", "ice": "ICE", "igb": "IGB",
    "igc": "IGC", "e1000e": "E1000E", "e1000": "E1000", "mlx4_core": "MLX4_CORE",
    "mlx4_en": "MLX4_EN", "mlx5_core": "MLX5_CORE", "bnxt_en": "BNXT", "bnx2": "BNX2",
    "bnx2x": "BNX2X", "tg3": "TIGON3", "cxgb4": "CHELSIO_T4", "qede": "QEDE", "qed": "QED",
    "be2net": "BE2NET", "atlantic": "AQTION", "nfp": "NFP", "ena": "ENA_ETHERNET",
    "vmxnet3": "VMXNET3", "r8169": "R8169", "enic": "ENIC", "ionic": "IONIC",
}  # fmt: skip


def require(kernel: Kernel, name: str, drivers: Mapping[str, str]) -> None:
    """Check that ``kernel.config`` has the ``drivers`` that the host ``name`` needs to boot.

    Raises:
        ConfigurationError: drivers are missing; the message says what needs each.
    """
    configuration = chosen(kernel)
    have = options((configuration.base or "") + configuration.asked)
    missing = [
        f"CONFIG_{option} ({driver}: {drivers[driver]})"
        for driver in drivers
        if (option := OPTIONS.get(driver))
        and have.get(f"CONFIG_{option}", "").rpartition("=")[2] not in ("y", "m")
    ]
    if missing:
        raise ConfigurationError(
            f"{name} would not boot a kernel of kernel.config: {kernel.config}; missing: "
            + ", ".join(missing),
            hint="set config: host (or auto), which starts from the host's own kernel, or add "
            "these options to your .config"
            + ("; benchmark is for virtual beds" if kernel.config == "benchmark" else ""),
        )
