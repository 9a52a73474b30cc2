//! Sizes of machines: Ops Manager's names for them.

use std::str::FromStr;

use stolos_clusters::plans::MachineSize;

use super::Options;

/// A size of machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmType {
    /// Processors.
    pub cpu: u32,
    /// Memory in MiB.
    pub ram: u32,
    /// Ephemeral disk in MiB.
    pub disk: u32,
}

/// One `NAME=CPU:RAM_MB:DISK_MB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedVmType {
    /// Its name in the tile.
    pub name: String,
    /// Its size.
    pub size: VmType,
}

impl FromStr for NamedVmType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "it is not NAME=CPU:RAM_MB:DISK_MB, such as worker.big=8:32768:65536".to_owned();
        let (name, size) = text.split_once('=').ok_or_else(wrong)?;
        let numbers = size.split(':').map(|part| part.trim().parse().ok());
        let numbers: Vec<u32> = numbers.collect::<Option<_>>().ok_or_else(wrong)?;
        let [cpu, ram, disk] = numbers[..] else {
            return Err(wrong());
        };
        if name.trim().is_empty() {
            return Err(wrong());
        }
        if cpu == 0 || ram < 256 || disk < 512 {
            return Err("a node needs 1 cpu, 256 MiB ram and 512 MiB disk".to_owned());
        }
        Ok(Self {
            name: name.trim().to_owned(),
            size: VmType { cpu, ram, disk },
        })
    }
}

/// What stands for `automatic` and for names that nobody knows: `medium.disk`, which the tile recommends for masters and workers.
const USUAL: VmType = VmType {
    cpu: 2,
    ram: 4096,
    disk: 32_768,
};
/// Instance types of clouds have no disk of their own in their name.
const CLOUD_DISK: u32 = 32_768;

/// Ops Manager's own types, unless an operator changed them: cpu, ram, disk.
const OWN: &[(&str, u32, u32, u32)] = &[
    ("nano", 1, 512, 1024),
    ("micro", 1, 1024, 8192),
    ("micro.ram", 1, 2048, 8192),
    ("small", 1, 2048, 8192),
    ("small.disk", 1, 2048, 16_384),
    ("medium", 2, 4096, 8192),
    ("medium.mem", 1, 6144, 8192),
    ("medium.disk", 2, 4096, 32_768),
    ("medium.cpu", 4, 2048, 8192),
    ("large", 2, 8192, 16_384),
    ("large.mem", 2, 12_288, 16_384),
    ("large.disk", 2, 8192, 65_536),
    ("large.cpu", 4, 4096, 16_384),
    ("xlarge", 4, 16_384, 32_768),
    ("xlarge.mem", 4, 24_576, 32_768),
    ("xlarge.disk", 4, 16_384, 131_072),
    ("xlarge.cpu", 8, 8192, 32_768),
    ("2xlarge", 8, 32_768, 65_536),
    ("2xlarge.mem", 8, 49_152, 65_536),
    ("2xlarge.disk", 8, 32_768, 262_144),
    ("2xlarge.cpu", 16, 16_384, 65_536),
];

/// Types of AWS that Ops Manager offers there: cpu, ram.
const AWS: &[(&str, u32, u32)] = &[
    ("t2.micro", 1, 1024),
    ("t2.small", 1, 2048),
    ("t2.medium", 2, 4096),
    ("t2.large", 2, 8192),
    ("t3.micro", 2, 1024),
    ("t3.small", 2, 2048),
    ("t3.medium", 2, 4096),
    ("t3.large", 2, 8192),
    ("m4.large", 2, 8192),
    ("m4.xlarge", 4, 16_384),
    ("m4.2xlarge", 8, 32_768),
    ("m4.4xlarge", 16, 65_536),
    ("m5.large", 2, 8192),
    ("m5.xlarge", 4, 16_384),
    ("m5.2xlarge", 8, 32_768),
    ("m5.4xlarge", 16, 65_536),
    ("c4.large", 2, 3840),
    ("c4.xlarge", 4, 7680),
    ("c4.2xlarge", 8, 15_360),
    ("c5.large", 2, 4096),
    ("c5.xlarge", 4, 8192),
    ("r4.large", 2, 15_616),
    ("r4.xlarge", 4, 31_232),
    ("r4.2xlarge", 8, 62_464),
];

/// How a VM type was understood.
pub(super) enum Understood {
    /// Its size is known.
    Known(VmType),
    /// Its processors and memory are known; the disk is assumed.
    DiskAssumed(VmType),
    /// The tile leaves the choice to Ops Manager.
    Automatic(VmType),
    /// Nobody knows it.
    Unknown(VmType),
}

impl Understood {
    /// The size.
    pub(super) fn size(&self) -> VmType {
        match self {
            Self::Known(size) | Self::DiskAssumed(size) | Self::Automatic(size) | Self::Unknown(size) => {
                *size
            }
        }
    }
}

/// The size that a name stands for; the operator's own table goes first.
pub(super) fn understand(name: &str, options: &Options) -> Understood {
    if let Some(own) = options.vm_types.get(name) {
        return Understood::Known(*own);
    }
    if name.is_empty() || name == "automatic" {
        return Understood::Automatic(USUAL);
    }
    if let Some((_, cpu, ram, disk)) = OWN.iter().find(|(own, ..)| *own == name).copied() {
        return Understood::Known(VmType { cpu, ram, disk });
    }
    match AWS.iter().find(|(aws, ..)| *aws == name).copied() {
        Some((_, cpu, ram)) => Understood::DiskAssumed(VmType {
            cpu,
            ram,
            disk: CLOUD_DISK,
        }),
        None => Understood::Unknown(USUAL),
    }
}

impl std::fmt::Display for VmType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, ram, disk } = self;
        write!(f, "{cpu} cpu, {ram} MiB ram, {disk} MiB disk")
    }
}

impl VmType {
    /// The same with a persistent disk.
    pub(super) fn with_persistent_disk(self, persistent_disk: u32) -> MachineSize {
        MachineSize {
            cpu: self.cpu,
            ram: self.ram,
            ephemeral_disk: self.disk,
            persistent_disk,
        }
    }
}
