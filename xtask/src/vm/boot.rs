//! QEMU: one run of the machine, from power on to the job's exit status.

use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    kernel::Kernel,
    share::{SOCKET, Share},
    workplace::Workplace,
};

const MEMORY: &str = "4G";
const CPUS: &str = "2";

/// Lines of the console that are shown when the guest did not get to its end.
const LAST_LINES: usize = 60;

/// Boots, passes the job's output on and returns its exit status. The machine is killed when it
/// has not ended by itself within the limit.
pub fn run(kernel: &Kernel, place: &Workplace, share: &mut Share, limit: Duration) -> Result<u8> {
    let mut machine = Machine {
        qemu: command(kernel, place)
            .spawn()
            .context("cannot run qemu-system-x86_64")?,
    };
    let ended = machine.wait(limit)?;
    let status = fs::read_to_string(place.join("status")).unwrap_or_default();
    if let Ok(status) = status.trim().parse() {
        return Ok(status);
    }
    if let Some(complaint) = share.complaint(place) {
        eprintln!("xtask: {complaint}");
    }
    let console = fs::read_to_string(place.join("console")).unwrap_or_default();
    let lines: Vec<&str> = console.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        eprintln!("console: {line}");
    }
    match ended {
        Some(status) => bail!("the virtual machine ended before the command did ({status})"),
        None => bail!(
            "the virtual machine was stopped: the command took more than {} minutes",
            limit.as_secs() / 60
        ),
    }
}

fn command(kernel: &Kernel, place: &Workplace) -> Command {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.current_dir(place.path());
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // Five levels of page tables only cost time under emulation. Both processors take turns in one thread: with a
    // thread each, one may go on with what it translated before the other patched the kernel's code (QEMU 7.2), and
    // runs into the breakpoint of a patch that is long done, again and again.
    qemu.args([
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max,la57=off",
        "-smp",
        CPUS,
    ]);
    // The server of files reads and writes the guest's memory, so that it must be shared.
    let memory = format!("memory-backend-memfd,id=memory,size={MEMORY},share=on");
    qemu.args([
        "-m",
        MEMORY,
        "-object",
        &memory,
        "-machine",
        "q35,memory-backend=memory",
    ]);
    qemu.arg("-kernel")
        .arg(kernel.image())
        .args(["-initrd", "initrd"]);
    // Warnings are shown: where a processor is stuck, its stack is one.
    qemu.args([
        "-append",
        "console=ttyS0 panic=-1 loglevel=5",
        "-serial",
        "file:console",
    ]);
    qemu.args(["-chardev", &format!("socket,id=files,path={SOCKET}")]);
    qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"]);
    for disk in ["disk", "swap"] {
        qemu.args([
            "-drive",
            &format!("if=virtio,format=raw,cache=unsafe,file={disk}"),
        ]);
    }
    qemu.args(["-device", "virtio-serial-pci"]);
    qemu.args(["-chardev", "stdio,id=output,signal=off"]);
    qemu.args(["-device", "virtserialport,chardev=output,name=output"]);
    qemu.args(["-chardev", "file,id=status,path=status"]);
    qemu.args(["-device", "virtserialport,chardev=status,name=status"]);
    // Held open: at its end the port would close for what the guest writes, too.
    qemu.stdin(Stdio::piped());
    qemu
}

/// A machine that runs, killed when dropped.
struct Machine {
    qemu: Child,
}

impl Machine {
    /// Its end, or nothing when the limit came first.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.qemu.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(None)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
