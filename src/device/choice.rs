//! What `--device` takes: a device, or several of a kind.
use std::{fmt, str::FromStr, sync::Arc};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Device, Gpu, gpus};
use crate::error::{Error, Kind};

/// What `--device` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// `cpu`
    #[default]
    Cpu,
    /// `cuda` or `cuda:N`
    Cuda(usize),
    /// `cuda:0-3`, `cuda:0,2-3`, `emulated:0-1`: several of a kind.
    Several(Several),
    /// `emulated`: the CUDA kernels on the host processor, for checking them; slow.
    Emulated,
}

/// Several devices of one kind, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Several {
    emulated: bool,
    /// A bit for each number.
    numbers: u64,
}

/// Numbers that a list of devices may have lie below this.
const MOST: usize = u64::BITS as usize;

impl Several {
    /// Their numbers, rising.
    pub fn numbers(self) -> Vec<usize> {
        (0..MOST).filter(|n| self.numbers >> n & 1 == 1).collect()
    }
    fn kind(self) -> &'static str {
        if self.emulated { EMULATED } else { CUDA }
    }
    fn one(self, number: usize) -> DeviceChoice {
        if self.emulated { DeviceChoice::Emulated } else { DeviceChoice::Cuda(number) }
    }
}

const CUDA: &str = "cuda";
const EMULATED: &str = "emulated";

impl DeviceChoice {
    /// Opens the device; errors say what is missing.
    pub fn open(self) -> Result<Device> {
        Ok(match self {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda(ordinal) => Device::Cuda(Arc::new(
                Gpu::cuda(ordinal)
                    .with_context(|| format!("open --device {self}"))
                    .or_kind(|m| Error::no_device(self, m))?,
            )),
            DeviceChoice::Several(..) => {
                let message = format!(
                    "--device {self} names several devices, which generate, translate, score, eval, train, run and ablate use: name one"
                );
                bail!(Error::setting("device", message))
            }
            DeviceChoice::Emulated => Device::emulated(),
        })
    }

    /// Each device with its name, such as `cuda:2`.
    pub fn each(self) -> Vec<(String, DeviceChoice)> {
        match self {
            DeviceChoice::Several(several) => {
                let named = |n| (format!("{}:{n}", several.kind()), several.one(n));
                several.numbers().into_iter().map(named).collect()
            }
            one => vec![(one.to_string(), one)],
        }
    }

    /// The first of several, or itself: for what runs on one device whatever was named.
    pub fn first(self) -> DeviceChoice {
        self.each().first().map_or(self, |(_, device)| *device)
    }

    /// True for NVIDIA's devices.
    pub fn is_cuda(self) -> bool {
        matches!(self.first(), DeviceChoice::Cuda(_))
    }

    /// Refuses devices of which one is not there; no device is opened.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: which are missing, and how many there are.
    pub fn check_there(self) -> Result<()> {
        let numbers = match self {
            DeviceChoice::Cuda(number) => vec![number],
            DeviceChoice::Several(several) if !several.emulated => several.numbers(),
            _ => return Ok(()),
        };
        let there = gpus().map_err(|why| Error::no_device(self, format!("--device {self}: {why}")))?.len();
        let missing: Vec<String> =
            numbers.iter().filter(|n| **n >= there).map(|n| format!("cuda:{n}")).collect();
        let message = || {
            let s = if there == 1 { "" } else { "s" };
            format!("--device {self}: this machine has {there} GPU{s}: there is no {}", missing.join(", no "))
        };
        ensure!(missing.is_empty(), Error::no_device(self, message()));
        Ok(())
    }
}

impl FromStr for DeviceChoice {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<DeviceChoice> {
        let (kind, list) = s.split_once(':').map_or((s, None), |(kind, list)| (kind, Some(list)));
        Ok(match (kind, list) {
            ("cpu", None) => DeviceChoice::Cpu,
            (CUDA, None) => DeviceChoice::Cuda(0),
            (EMULATED, None) => DeviceChoice::Emulated,
            (CUDA | EMULATED, Some(list)) => {
                let chosen = listed(list, kind == EMULATED);
                chosen.map_err(|why| Error::setting("device", format!("device `{s}`: {why}")))?
            }
            _ => {
                let message = format!(
                    "there is no device `{s}`; use cpu, cuda, cuda:N, several such as cuda:0-3 or cuda:0,2-3, or emulated"
                );
                bail!(Error::setting("device", message))
            }
        })
    }
}

/// `N`, `A-B`, or several of these with commas between them.
fn listed(list: &str, emulated: bool) -> Result<DeviceChoice> {
    let mut several = Several { emulated, numbers: 0 };
    let number = |s: &str| {
        // A sign would be taken for one, too.
        let digits = s.bytes().all(|b| b.is_ascii_digit());
        s.parse::<usize>().ok().filter(|_| digits).ok_or_else(|| anyhow!("`{s}` is no number of a device"))
    };
    if let (false, Ok(one)) = (emulated, number(list)) {
        return Ok(DeviceChoice::Cuda(one));
    }
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        ensure!(first <= last, "{part} ends before it begins");
        ensure!(last < MOST, "{last} is beyond the {MOST} devices that a list can name");
        for n in first..=last {
            ensure!(several.numbers >> n & 1 == 0, "{}:{n} is named twice", several.kind());
            several.numbers |= 1 << n;
        }
    }
    Ok(match several.numbers() {
        all if all.len() == 1 => several.one(all[0]),
        _ => DeviceChoice::Several(several),
    })
}

impl fmt::Display for DeviceChoice {
    /// As it is parsed, in the shortest way.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "{CUDA}:{ordinal}"),
            DeviceChoice::Several(several) => {
                let numbers = several.numbers();
                let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
                    [first, .., last] => format!("{first}-{last}"),
                    one => one.iter().map(usize::to_string).collect(),
                });
                write!(f, "{}:{}", several.kind(), runs.collect::<Vec<_>>().join(","))
            }
            DeviceChoice::Emulated => write!(f, "{EMULATED}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_parser_reads_one_device_and_several() {
        for (given, shown, each) in [
            ("cpu", "cpu", &["cpu"][..]),
            ("cuda", "cuda:0", &["cuda:0"]),
            ("cuda:77", "cuda:77", &["cuda:77"]),
            ("cuda:3-3", "cuda:3", &["cuda:3"]),
            ("cuda:0-2", "cuda:0-2", &["cuda:0", "cuda:1", "cuda:2"]),
            ("cuda:3,0,1", "cuda:0-1,3", &["cuda:0", "cuda:1", "cuda:3"]),
            ("cuda:62-63,5", "cuda:5,62-63", &["cuda:5", "cuda:62", "cuda:63"]),
            ("emulated", "emulated", &["emulated"]),
            ("emulated:1", "emulated", &["emulated"]),
            ("emulated:0-1", "emulated:0-1", &["emulated:0", "emulated:1"]),
        ] {
            let choice: DeviceChoice = given.parse().unwrap();
            let names: Vec<String> = choice.each().into_iter().map(|(name, _)| name).collect();
            assert_eq!(
                (choice.to_string().as_str(), names),
                (shown, each.iter().map(|s| s.to_string()).collect())
            );
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice, "{given}");
        }
        let several: DeviceChoice = "cuda:1,4".parse().unwrap();
        assert_eq!((several.first(), several.is_cuda()), (DeviceChoice::Cuda(1), true));
        assert!(!"emulated:0-1".parse::<DeviceChoice>().unwrap().is_cuda());
    }

    #[test]
    fn what_is_no_device_or_named_twice_is_refused_by_name() {
        for (given, part) in [
            ("gpu", "there is no device `gpu`"),
            ("cpu:0", "there is no device `cpu:0`"),
            ("cuda:", "`` is no number"),
            ("cuda:x", "`x` is no number"),
            ("cuda:0,", "`` is no number"),
            ("cuda:-1", "`` is no number"),
            ("cuda:3-0", "3-0 ends before it begins"),
            ("cuda:0-99999999999", "beyond the 64"),
            ("cuda:0,0", "cuda:0 is named twice"),
            ("cuda:0-2,1", "cuda:1 is named twice"),
            ("emulated:1,1", "emulated:1 is named twice"),
        ] {
            let error = format!("{:#}", given.parse::<DeviceChoice>().unwrap_err());
            assert!(error.contains(part), "{given}: {error}");
        }
    }

    #[test]
    fn gpus_that_are_not_there_are_named() {
        let there = gpus().map_or(0, |gpus| gpus.len());
        let error = "cuda:0,63".parse::<DeviceChoice>().unwrap().check_there().unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("--device cuda:0,63") && (there == 0 || text.contains("no cuda:63")), "{text}");
        assert_eq!(Error::from(error).exit_code(), 69);
        "emulated:0-63".parse::<DeviceChoice>().unwrap().check_there().unwrap();
    }
}
