//! The daemon's socket: whoever asks, slowly, wrongly or without the right to, nobody is held up and nobody sees what
//! is not theirs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use memtrace_tests::daemon::Daemon;
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::workload;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PS: &[u8] = b"{\"version\":1,\"request\":{\"ps\":{}}}\n";

/// Debian's user for what owns nothing.
const NOBODY: u32 = 65_534;

/// Asks as another user, by Debian's python: the answer, or the error.
fn ask_as(uid: u32, daemon: &Daemon, question: &str) -> String {
    let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                  s.sendall(sys.argv[2].encode() + b'\\n')\nprint(s.makefile().read())\n";
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-c", script])
        .arg(daemon.socket())
        .arg(question);
    let told = memtrace_tests::child::run(command.uid(uid).gid(uid).current_dir("/"));
    told.output() + &told.messages()
}

#[test]
fn nonsense_gets_a_line_that_says_what_is_wrong() {
    let daemon = Daemon::start();
    for (question, said) in [
        (&b"hello\n"[..], "the question is not understood"),
        (b"\n", "the question is not understood"),
        (
            b"{\"version\":1,\"request\":{\"fly\":{}}}\n",
            "unknown variant `fly`",
        ),
        (
            b"{\"version\":7,\"request\":{\"ps\":{}}}\n",
            "version 1 of the protocol, not 7",
        ),
        (
            b"{\"version\":1,\"request\":{\"ps\":{}},\"x\":1}\n",
            "unknown field `x`",
        ),
    ] {
        let answer = daemon.send(question);
        assert!(answer.contains(said), "{answer}");
        assert!(
            answer.contains("\"error\"") && answer.ends_with('\n'),
            "{answer}"
        );
    }
    let huge = vec![b'a'; 10 << 20];
    assert!(daemon.send(&huge).contains("65536 bytes at most") || daemon.send(&huge).is_empty());
    let deep = [&b"{\"version\":1,\"request\":"[..], &[b'['; 60_000], b"\n"].concat();
    assert!(daemon.send(&deep).contains("error"));
    assert!(daemon.send(PS).contains("\"processes\""));
}

#[test]
fn silent_and_slow_clients_hold_nobody_up() {
    let daemon = Daemon::with("[socket]\nclients = 40\n");
    let mut silent: Vec<UnixStream> = (0..30)
        .map(|_| UnixStream::connect(daemon.socket()).expect("the daemon listens"))
        .collect();
    // Half of them send a part of a question, and none reads.
    for stream in silent.iter_mut().step_by(2) {
        stream.write_all(&PS[..10]).expect("a part");
    }
    let start = Instant::now();
    for _ in 0..20 {
        assert!(daemon.send(PS).contains("\"processes\""));
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // Each is told after five seconds, or closed.
    for stream in &mut silent {
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a time-out");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the daemon closes");
        assert!(answer.contains("no question came in time"), "{answer}");
    }
}

#[test]
fn clients_that_ask_nothing_give_way_to_those_that_ask() {
    let daemon = Daemon::with("[socket]\nclients = 8\n");
    let mut held: Vec<UnixStream> = (0..8)
        .map(|_| UnixStream::connect(daemon.socket()).expect("the daemon listens"))
        .collect();
    for _ in 0..8 {
        assert!(daemon.send(PS).contains("\"processes\""));
    }
    // One gave way; the place that it left did for all that asked.
    let oldest = &mut held[0];
    oldest
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a time-out");
    let mut answer = String::new();
    oldest.read_to_string(&mut answer).expect("it is closed");
    assert!(answer.contains("too many clients"), "{answer}");
}

/// Bytes that are resident, and open descriptors.
fn held_by(pid: u32) -> (u64, usize) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("it runs");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let resident: u64 = pages.expect("resident pages");
    (resident * 4096, descriptors.count())
}

#[test]
fn ten_thousand_clients_keep_nobody_from_an_answer() {
    const CLIENTS: usize = 10_000;
    /// Places by default.
    const PLACES: usize = 64;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(most > CLIENTS as u64 + 500, "{most} open files at most");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raise the limit");
    let mut daemon = Daemon::start();
    let pid = daemon.process().pid();
    let (resident, descriptors) = held_by(pid);
    let socket = daemon.socket();
    let flood = std::thread::spawn(move || -> Vec<UnixStream> {
        // All stay open on this side: half say nothing, half a part of a question.
        let connect = |number: usize| {
            let mut stream = UnixStream::connect(&socket).expect("the daemon listens");
            if number.is_multiple_of(2) {
                // It may have been refused already.
                let _ = stream.write_all(&PS[..10]);
            }
            stream
        };
        (0..CLIENTS).map(connect).collect()
    });
    // So many may come between a connection and its question that it is the one to give way.
    let answered = || {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = daemon.send(PS);
            if answer.contains("\"processes\"") && answer.ends_with('\n') {
                return;
            }
            assert!(
                answer.is_empty() || answer.contains("too many clients"),
                "{answer}"
            );
            assert!(Instant::now() < until, "nobody is answered");
        }
    };
    while !flood.is_finished() {
        answered();
    }
    let held = flood.join().expect("ten thousand connections");
    // Who is answered now came behind all of them: nobody else comes any more.
    answered();
    for _ in 0..20 {
        let answer = daemon.send(PS);
        assert!(answer.contains("\"processes\""), "{answer}");
    }
    let (now, open) = held_by(pid);
    assert!(now < resident + (32 << 20), "{resident} B to {now} B");
    assert!(
        open <= descriptors + PLACES + 8,
        "{descriptors} descriptors to {open}"
    );
    drop(held);
    let until = Instant::now() + Duration::from_secs(60);
    while held_by(pid).1 > descriptors + 2 {
        assert!(Instant::now() < until, "connections stay open");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn other_users_see_nothing_unless_they_may_and_then_their_own() {
    let closed = Daemon::start();
    let refused = ask_as(NOBODY, &closed, "{\"version\":1,\"request\":{\"ps\":{}}}");
    assert!(refused.contains("Permission denied"), "{refused}");
    drop(closed);

    let daemon = Daemon::with("[socket]\nusers = true\n");
    let program = daemon.scratch.copy(&workload("steps.c"), "steps", 0o755);
    let mut command = Command::new(&program);
    let mut theirs = Steps::of(daemon.cgroup.holds(command.gid(NOBODY)));
    let mut roots = Steps::of(daemon.cgroup.holds(&mut Command::new(&program)));
    let mut python = Command::new("/usr/bin/python3");
    python.args([
        "-c",
        "import os, sys\nos.setgid(65534); os.setuid(65534)\nos.execv(sys.argv[1], sys.argv[1:])",
    ]);
    let mut nobodys = Steps::of(daemon.cgroup.holds(python.arg(&program)));
    for pid in [theirs.pid(), roots.pid(), nobodys.pid()] {
        daemon.line(pid, |line| line.comm.starts_with("steps"));
    }
    let listed = ask_as(NOBODY, &daemon, "{\"version\":1,\"request\":{\"ps\":{}}}");
    let answer: serde_json::Value = serde_json::from_str(listed.trim()).expect(&listed);
    let processes = answer["reply"]["ps"]["processes"]
        .as_array()
        .expect("processes");
    let pids: Vec<u64> = processes
        .iter()
        .filter_map(|one| one["pid"].as_u64())
        .collect();
    assert_eq!(pids, [u64::from(nobodys.pid())]);
    assert_eq!(answer["reply"]["ps"]["cgroups"], serde_json::json!([]));

    let ask = |request: &str| {
        ask_as(
            NOBODY,
            &daemon,
            &format!("{{\"version\":1,\"request\":{request}}}"),
        )
    };
    let root = ask(&format!("{{\"report\":{{\"pids\":[{}]}}}}", roots.pid()));
    assert!(root.contains("another user's"), "{root}");
    let own = ask(&format!("{{\"report\":{{\"pids\":[{}]}}}}", nobodys.pid()));
    assert!(own.contains("\"committed_bytes\""), "{own}");
    let all = ask("{\"report\":{}}");
    assert!(!all.contains(&format!("\"pid\":{}", roots.pid())), "{all}");
    let past = ask("{\"report\":{\"since\":\"1h\"}}");
    assert!(past.contains("the past is root's"), "{past}");
    let mark = ask("{\"mark\":{\"name\":\"x\"}}");
    assert!(mark.contains("only root"), "{mark}");
    for steps in [&mut theirs, &mut roots, &mut nobodys] {
        steps.round();
    }
    theirs.end(0);
    roots.end(0);
    nobodys.end(0);
}
