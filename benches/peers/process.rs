//! Processes of the run: each bound to its cores, and ended with the run however that ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Fallible;

/// Who may run where. Empty means anywhere.
pub(crate) struct Cores {
    pub(crate) proxy: Vec<usize>,
    pub(crate) others: Vec<usize>,
}

impl Cores {
    /// The proxy has the last core for itself: interrupts tend to come to the first.
    pub(crate) fn divide() -> Self {
        let mut others = usable_cores();
        match others.pop() {
            Some(last) if !others.is_empty() => Self { proxy: vec![last], others },
            _ => Self { proxy: Vec::new(), others: Vec::new() },
        }
    }
}

/// A command for this program, to be given its role.
pub(crate) fn role(cores: &[usize], role: &str) -> Fallible<Command> {
    let mut command = command(cores, &std::env::current_exe()?)?;
    command.arg(role);
    Ok(command)
}

/// A command that will run bound to these cores and not outlive this process, both of which only
/// the process itself can ask for: so this program is started, and becomes the other one.
pub(crate) fn command(cores: &[usize], program: impl AsRef<OsStr>) -> Fallible<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
    command.arg("become").arg(cores.join(",")).arg(program);
    Ok(command)
}

/// The other half of [`command`].
pub(crate) fn become_other(cores: &str, program: &OsStr, args: &[OsString]) -> Fallible<()> {
    bind_to(cores)?;
    end_with_parent()?;
    Err(Command::new(program).args(args).exec().into())
}

/// A child that is killed, by its own id alone, when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    pub(crate) fn interrupt(&self) -> io::Result<()> {
        Ok(kill(self.pid(), Signal::SIGINT)?)
    }
}

/// Lets a process run before all that are not real-time, if this user may ask for that.
pub(crate) fn make_real_time(pid: Pid) -> bool {
    let mut chrt = Command::new("chrt");
    chrt.args(["--fifo", "--pid", "1"]).arg(pid.to_string()).stderr(Stdio::null());
    chrt.status().is_ok_and(|status| status.success())
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(target_os = "linux")]
fn usable_cores() -> Vec<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect()
}

#[cfg(target_os = "linux")]
fn bind_to(cores: &str) -> Fallible<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for core in cores.split(',') {
        set.set(core.parse()?)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

#[cfg(target_os = "linux")]
fn end_with_parent() -> Fallible<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

#[cfg(not(target_os = "linux"))]
fn usable_cores() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn bind_to(_: &str) -> Fallible<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> Fallible<()> {
    Ok(())
}
