//! smoke
use memtrace::probe::{object::*, points::*, fault::*, sideband::*, heap::*, tracefs::*, libraries};
use std::rc::Rc;
fn main() {
    env_logger::init();
    let a: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let t0=std::time::Instant::now();
    let tracefs = Rc::new(Tracefs::open().unwrap());
    tracefs.purge().unwrap();
    let mut o = Object::load(&LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("loaded {:?} {:?}", t0.elapsed(), o.offsets());
    let mut s = memtrace::stream::Stream::new(o.take_ring().unwrap());
    for st in attach(&mut o).unwrap() { if st.failure.is_some() { eprintln!("{st:?}"); } }
    let mut f = FaultProbes::default();
    let mut sb = Sideband::new().unwrap();
    let mut h = HeapProbes::new(tracefs);
    eprintln!("attached {:?}", t0.elapsed());
    let mut c = std::process::Command::new("/bin/sh"); c.arg("-c").arg("read x; exec \"$@\"").arg("sh").args(&a).stdin(std::process::Stdio::piped());
    let mut ch = c.spawn().unwrap();
    let pid = ch.id();
    let now = memtrace::seed::now_ns();
    o.trace(pid, now, true).unwrap(); s.begin(pid, now);
    f.follow(&o, pid, true).unwrap(); sb.follow(pid, true).unwrap(); h.follow(&o, pid, true).unwrap();
    eprintln!("followed {:?}", t0.elapsed());
    let fl = libraries::files(std::path::Path::new(&a[0])); eprintln!("{fl:?} {:?} {:?}", h.probe_all(&mut o, &fl), t0.elapsed());
    for s in &h.statuses { eprint!("{} ", s.name); }
    eprintln!();
    use std::io::Write; let t1=std::time::Instant::now(); ch.stdin.take().unwrap().write_all(b"\n").unwrap();
    let verbose = std::env::var("V").is_ok();
    let mut counts = std::collections::BTreeMap::new(); let mut prev = 0;
    let mut del = |e: memtrace::event::Event| { let n = format!("{:?}", e.kind); let n = n.split(['(',' ']).next().unwrap().to_owned(); *counts.entry(n).or_insert(0u64) += 1; if verbose { println!("{} {}/{} {:?}", e.time_ns as i64 - now as i64, e.pid, e.tid, e.kind); } if e.time_ns>0 && e.time_ns + 1000_000 < prev { eprintln!("order {} {:?}", prev - e.time_ns, e); } prev = e.time_ns; };
    loop {
        let any = s.drain(&mut o, &mut sb, &mut del);
        if !any { if ch.try_wait().unwrap().is_some() { break; } std::thread::sleep(std::time::Duration::from_millis(1)); }
    }
    eprintln!("ran {:?}", t1.elapsed());
    while s.drain(&mut o, &mut sb, &mut del) {}
    s.finish(&mut o, memtrace::seed::now_ns(), &mut del);
    eprintln!("{counts:#?}");
    let t2=std::time::Instant::now();
    drop(h); eprintln!("unprobed {:?}", t2.elapsed());
    drop(f); drop(sb); drop(o);
    eprintln!("done {:?}", t2.elapsed());
}
