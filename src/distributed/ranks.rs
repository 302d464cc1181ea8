//! Which rank this process is, as its launcher says: the variables of torchrun, Open MPI, MPICH (PMI) and Slurm.
use anyhow::{Context, Result, bail};

use super::world::World;

/// One process of several, and where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Which.
    pub world: World,
    /// Its number on its machine, from 0.
    pub local: usize,
    /// Host name or address of rank 0.
    pub address: String,
    /// The port at which rank 0 listens.
    pub port: u16,
}

/// How a launcher calls rank, size, rank on the machine and size on the machine.
struct Family {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local: &'static str,
    local_size: Option<&'static str>,
}

const TORCHRUN: Family = Family {
    name: "torchrun",
    rank: "RANK",
    size: "WORLD_SIZE",
    local: "LOCAL_RANK",
    local_size: Some("LOCAL_WORLD_SIZE"),
};
const SLURM: Family = Family {
    name: "Slurm",
    rank: "SLURM_PROCID",
    size: "SLURM_NTASKS",
    local: "SLURM_LOCALID",
    local_size: None,
};
/// The innermost launcher first: mpirun may be started by Slurm, torchrun by any.
const FAMILIES: [Family; 4] = [
    TORCHRUN,
    Family {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
    },
    Family {
        name: "MPICH",
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: "MPI_LOCALRANKID",
        local_size: Some("MPI_LOCALNRANKS"),
    },
    SLURM,
];

/// torchrun's own default.
const PORT: u16 = 29500;

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Ranks {
    /// As the process's environment has it; nothing for a process that trains alone.
    ///
    /// # Errors
    /// Variables that are missing beside others, that are no numbers, or that contradict each other: which.
    pub fn of_environment() -> Result<Option<Ranks>> {
        Ranks::of(&|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    }

    fn of(get: Lookup) -> Result<Option<Ranks>> {
        let mut found: Vec<(&Family, World)> = vec![];
        for family in &FAMILIES {
            if let Some(world) = family.world(get)?
                && world.size() > 1
            {
                found.push((family, world));
            }
        }
        let Some((family, world)) = found.first().copied() else { return Ok(None) };
        // torchrun may run once a node under any of the others.
        if get("TORCHELASTIC_RUN_ID").is_none()
            && let Some((other, theirs)) = found.iter().find(|(_, w)| *w != world)
        {
            bail!(
                "{} and {} contradict each other: {} is {} of {} = {}, but {} is {} of {} = {}; unset those of the launcher that did not start this process",
                family.name,
                other.name,
                family.rank,
                world.rank(),
                family.size,
                world.size(),
                other.rank,
                theirs.rank(),
                other.size,
                theirs.size()
            );
        }
        let local = number(get, family.local, family)?;
        let (address, port) = meeting_place(get, family, world)?;
        Ok(Some(Ranks { world, local, address, port }))
    }
}

impl Family {
    /// Nothing if it has not started this process.
    fn world(&self, get: Lookup) -> Result<Option<World>> {
        // The batch script itself has Slurm's variables, too, but is no task of a step.
        if self.name == SLURM.name && get("SLURM_STEP_ID").is_none() {
            return Ok(None);
        }
        if get(self.rank).is_none() && get(self.size).is_none() {
            return Ok(None);
        }
        let (rank, size) = (number(get, self.rank, self)?, number(get, self.size, self)?);
        let world = World::new(rank, size)
            .with_context(|| format!("{} is {rank} and {} is {size}", self.rank, self.size))?;
        Ok(Some(world))
    }
}

fn number(get: Lookup, name: &str, family: &Family) -> Result<usize> {
    let text = get(name).with_context(|| {
        format!("the variables of {} are incomplete: {name} is not set, though others are", family.name)
    })?;
    text.trim().parse().ok().with_context(|| format!("{name} is `{text}`: a whole number was expected"))
}

/// Where rank 0 listens.
fn meeting_place(get: Lookup, family: &Family, world: World) -> Result<(String, u16)> {
    let one_machine = family.local_size.and_then(get).and_then(|n| n.parse().ok()) == Some(world.size());
    let slurm = family.name == SLURM.name;
    let nodes = || get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_NODELIST"));
    let address = match get("MASTER_ADDR") {
        Some(address) => address,
        None if slurm => {
            let list = nodes().context("MASTER_ADDR is not set, and neither is SLURM_STEP_NODELIST")?;
            first_host(&list).with_context(|| {
                format!("SLURM_STEP_NODELIST is `{list}`: set MASTER_ADDR to the host of rank 0")
            })?
        }
        None if one_machine && family.name != TORCHRUN.name => "127.0.0.1".into(),
        None => {
            bail!("MASTER_ADDR is not set: it names the host of rank 0 (with mpirun: -x MASTER_ADDR=HOST)")
        }
    };
    let port = match (get("MASTER_PORT"), get("SLURM_JOB_ID").filter(|_| slurm)) {
        (Some(port), _) => port
            .parse()
            .ok()
            .filter(|p| *p > 0)
            .with_context(|| format!("MASTER_PORT is `{port}`: a port was expected"))?,
        // Jobs that share a node have a port each.
        (None, Some(job)) => job.parse::<u64>().map_or(PORT, |job| 20_000 + (job % 10_000) as u16),
        (None, None) if family.name == TORCHRUN.name => {
            bail!("the variables of torchrun are incomplete: MASTER_PORT is not set, though others are")
        }
        (None, None) => PORT,
    };
    // There torchrun itself listens.
    let taken = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let port =
        if taken && family.name == TORCHRUN.name { port.checked_add(1).unwrap_or(port - 1) } else { port };
    Ok((address, port))
}

/// The first host of a Slurm node list such as `gpu[003-006,010],login`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list.trim());
    while let Some(at) = rest.find(['[', ',']) {
        host.push_str(&rest[..at]);
        if rest[at..].starts_with(',') {
            return Some(host).filter(|h| !h.is_empty());
        }
        let end = at + rest[at..].find(']')?;
        let first = rest[at + 1..end].split([',', '-']).next()?;
        host.push_str(first);
        rest = &rest[end + 1..];
    }
    host.push_str(rest);
    Some(host).filter(|h| !h.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &str) -> Result<Option<Ranks>> {
        let pairs: Vec<(&str, &str)> =
            variables.split_whitespace().filter_map(|v| v.split_once('=')).collect();
        Ranks::of(&|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn every_launcher_says_who_this_is() {
        for (variables, rank, size, local, address, port) in [
            ("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=1234", 5, 8, 1, "a", 1234),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=7 TORCHELASTIC_USE_AGENT_STORE=True",
                0,
                2,
                0,
                "a",
                8,
            ),
            (
                "SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_STEP_NODELIST=n[07-09,12],x SLURM_JOB_ID=123456",
                3,
                4,
                1,
                "n07",
                23456,
            ),
            (
                "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2",
                1,
                2,
                1,
                "127.0.0.1",
                29500,
            ),
            ("PMI_RANK=1 PMI_SIZE=3 MPI_LOCALRANKID=0 MASTER_ADDR=h MASTER_PORT=99", 1, 3, 0, "h", 99),
            // One torchrun a node, started by srun.
            (
                "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=9 TORCHELASTIC_RUN_ID=x SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0",
                5,
                8,
                1,
                "a",
                9,
            ),
        ] {
            let world = World::new(rank, size).unwrap();
            let wanted = Ranks { world, local, address: address.into(), port };
            assert_eq!(of(variables).unwrap(), Some(wanted), "{variables}");
        }
    }

    #[test]
    fn a_lone_process_stays_alone() {
        for variables in [
            "",
            "SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0",
            "RANK=0 WORLD_SIZE=1",
            "SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_JOB_ID=3",
        ] {
            assert_eq!(of(variables).unwrap(), None, "{variables}");
        }
    }

    #[test]
    fn what_is_missing_or_contradicts_is_named() {
        for (variables, parts) in [
            ("RANK=1", ["torchrun", "WORLD_SIZE is not set"]),
            ("RANK=1 WORLD_SIZE=4000000000", ["WORLD_SIZE is 4000000000", "65536 at most"]),
            ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", ["torchrun", "LOCAL_RANK is not set"]),
            ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_PORT=1", ["MASTER_ADDR", "not set"]),
            ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a", ["MASTER_PORT", "not set"]),
            ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1", ["RANK is 2", "no rank 2"]),
            ("RANK=x WORLD_SIZE=2", ["RANK is `x`", "whole number"]),
            ("PMI_RANK=1 PMI_SIZE=3 MPI_LOCALRANKID=0", ["MASTER_ADDR is not set", "host of rank 0"]),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1 PMI_RANK=0 PMI_SIZE=2",
                ["RANK is 1", "PMI_RANK is 0"],
            ),
        ] {
            let error = format!("{:#}", of(variables).unwrap_err());
            assert!(parts.iter().all(|p| error.contains(p)), "{variables}: {error}");
        }
    }

    #[test]
    fn the_first_host_of_a_list() {
        for (list, host) in
            [("n1", "n1"), ("n1,n2", "n1"), ("a[3-5]", "a3"), ("r[1-2]n[04,06]-ib,x", "r1n04-ib")]
        {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
        assert_eq!((first_host(""), first_host("a[1")), (None, None));
    }
}
