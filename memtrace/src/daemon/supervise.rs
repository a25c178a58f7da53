//! The daemon's life: start, the loop that everything runs in, and an end in good order.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::mpsc,
    task::{self, JoinHandle, LocalSet},
    time::{MissedTickBehavior, interval},
};

use super::{
    Config, DaemonError,
    access::Viewer,
    archive::{Archive, Moment},
    budget::{Action, Budget, Noisy, Optional},
    config,
    cost::Meter,
    instance::Instance,
    metrics::Metrics,
    naming, past, privileges,
    profiles::Profiles,
    protocol::{Listing, Reply, Request},
    push::{self, Collector},
    redact::redact,
    scrape::Endpoint,
    service,
    socket::{Asked, Server},
    table::Table,
    within::Within,
};
use crate::{
    event::Pid,
    model::Overview,
    probe::{area::Area, object::LoadOptions},
    report::document::{Document, LeftOut},
    seed,
    trace::{Options, Session, naming::Naming, selector::Selector, watch},
};

/// How often the ring buffers are emptied when none fills.
const DRAIN: Duration = Duration::from_millis(100);
/// How often everything is read.
const TICK: Duration = Duration::from_secs(1);
/// How long after its end everything of a process has been told: all sources are drained before it is taken.
const SETTLED_NS: u64 = 200_000_000;
/// Questions that wait at most.
const QUESTIONS: usize = 64;
/// Processes whose mappings are read anew for one report at most: smaps walks every page table.
const MAX_READ: usize = 64;

/// Everything that the loop works on.
struct Daemon {
    config: Config,
    session: Session,
    table: Table,
    meter: Meter,
    budget: Budget,
    /// Latencies that are not measured, as configured.
    untimed: Option<LeftOut>,
    /// Calls of their allocators by the last reading.
    heap_calls: FxHashMap<Pid, u64>,
    /// What Prometheus and a collector are told, where there is one.
    metrics: Option<Rc<RefCell<Metrics>>>,
    archive: Option<Archive>,
}

/// Runs until `stop` is done. To be called within a runtime of one thread; `ready` is called once questions are
/// answered. What the configuration says of loading outweighs `load`.
pub async fn run(
    config: Config,
    load: LoadOptions,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), DaemonError> {
    let _instance = Instance::claim(&config)?;
    let (sender, questions) = mpsc::channel(QUESTIONS);
    let profiles = config.metrics.profiles;
    let profiles = profiles.then(|| Profiles::new(sender.clone()));
    let server = Server::open(&config, sender)?;
    let mut session = start(&config, load)?;
    // Threads keep what they are started with.
    privileges::reduce()?;
    if config.fault_latency_sample > 1 {
        session.time_faults(config.fault_latency_sample)?;
    }
    let archive = match config.history.enabled {
        true => Some(Archive::begin(&config, now_ms())?),
        false => None,
    };
    let daemon = Daemon {
        session,
        table: Table::new(),
        meter: Meter::default(),
        budget: Budget::new(config.budget),
        untimed: untimed(config.fault_latency_sample),
        heap_calls: FxHashMap::default(),
        metrics: None,
        archive,
        config,
    };
    LocalSet::new()
        .run_until(daemon.work((server, profiles), questions, stop, ready))
        .await
}

/// Loads the programs and begins to trace.
fn start(config: &Config, load: LoadOptions) -> Result<Session, DaemonError> {
    let area = match &config.cgroup {
        Some(path) => Area::cgroup(path)?,
        None => Area::Machine,
    };
    let load = LoadOptions {
        ring_bytes: config.ring_buffer as u32,
        area: area.wire(),
        tell_faults: false,
        fault_windows: config.fault_latency_sample > 1,
        measure_runs: true,
        ..load
    };
    let options = Options {
        follow: true,
        heap: true,
        growth: config.growth.thresholds(),
        load,
    };
    let mut session = Session::new(options, None)?;
    session.trace_area(area)?;
    for selector in &config.heap {
        session.heap_on(selector.clone())?;
    }
    Ok(session)
}

impl Daemon {
    async fn work(
        mut self,
        (server, profiles): (Server, Option<Profiles>),
        mut questions: mpsc::Receiver<Asked>,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(),
    ) -> Result<(), DaemonError> {
        let wait = |source: io::Error| DaemonError::Wait { source };
        let (found, mut named) = mpsc::channel(QUESTIONS);
        let clients = task::spawn_local(server.serve());
        let scrapes = self.open_metrics(profiles).await?;
        let wake = watch::buffer(&self.session).map_err(wait)?;
        let mut drain = interval(DRAIN);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.read(SETTLED_NS);
        ready();
        service::ready();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                _ = tick.tick() => {
                    self.read(SETTLED_NS);
                    self.name_candidates(&found);
                    service::alive();
                }
                Some(asked) = questions.recv() => {
                    self.answer(asked, &found);
                    continue;
                }
                Some(naming::Done { names, asked }) = named.recv() => {
                    names.into_iter().for_each(|names| self.session.name(names));
                    let Some(asked) = asked else {
                        self.named();
                        continue;
                    };
                    let wanted = self.wanted(asked.viewer, &asked.pids, &asked.within);
                    let all = asked.pids.is_empty() && asked.within.is_all();
                    let _ = asked.reply.send(self.report(all, &wanted));
                    continue;
                }
                ready = wake.readable() => ready.map_err(wait)?.clear_ready(),
                _ = drain.tick() => {}
            }
            self.session.drain();
            self.session.watch_cpus();
            for failure in self.session.take_failures() {
                log::warn!("{failure}");
            }
        }
        service::stopping();
        scrapes.iter().for_each(JoinHandle::abort);
        clients.abort();
        // The server removes its socket when its task is dropped.
        let _ = clients.await;
        // Nothing more will be told of those that just ended.
        self.read(0);
        if let Some(archive) = self.archive.take() {
            archive.finish();
        }
        Ok(())
    }

    /// Lets Prometheus ask, and pushes to a collector, where the configuration says so.
    async fn open_metrics(
        &mut self,
        profiles: Option<Profiles>,
    ) -> Result<Vec<JoinHandle<()>>, DaemonError> {
        let config::Metrics {
            enabled,
            listen,
            top,
            ..
        } = self.config.metrics;
        let otlp = &self.config.otlp;
        let collector = otlp.endpoint.as_deref().and_then(Collector::parse);
        let metrics = Rc::new(RefCell::new(Metrics::new(top)));
        let mut tasks = Vec::new();
        if enabled {
            let endpoint = Endpoint::open(listen, Rc::clone(&metrics), profiles).await?;
            tasks.push(task::spawn_local(endpoint.serve()));
        }
        if let Some(collector) = collector {
            let pushes = push::push(collector, otlp.every, Rc::clone(&metrics));
            tasks.push(task::spawn_local(pushes));
        }
        self.metrics = (!tasks.is_empty()).then_some(metrics);
        Ok(tasks)
    }

    /// Reads everything: counters, sums of the processes, cgroups; of those that ended this long ago the last.
    fn read(&mut self, settled_ns: u64) {
        // Taken first: whoever ended before is known to have ended by the end of the drain.
        let time_ns = seed::now_ns();
        let moment = Moment {
            time_ns,
            now_ms: now_ms(),
            ended_ns: time_ns.saturating_sub(settled_ns),
        };
        while self.session.drain() {}
        self.session.tick();
        let mut ended = self.session.take_exited(moment.ended_ns);
        for process in &mut ended {
            redact(&mut process.command_line, self.config.redact_command_lines);
        }
        let model = self.session.model();
        let mut rows = model.overview();
        rows.retain(|row| row.running);
        self.table.update(time_ns, model.lost(), &rows);
        if let Some(metrics) = &self.metrics {
            let mut metrics = metrics.borrow_mut();
            metrics.update(&rows, &ended, self.table.listing());
        }
        if self.config.growth.enabled {
            self.session.follow_growth(time_ns, &rows);
        }
        let noisiest = self.noisiest(&rows);
        self.budget.read_clock(moment.now_ms);
        let left_out = self.left_out();
        if let Some(archive) = &mut self.archive {
            let model = self.session.model();
            archive.write(&self.config, model, moment, rows, ended, left_out);
        }
        let programs_ns = self.session.spent_ns();
        let cost = self.meter.read(time_ns, programs_ns);
        log::debug!("its programs took {programs_ns} ns, {cost:?}");
        let optional = Optional {
            sampled: self.session.sampled().count() as u64,
            noisiest,
        };
        let action = self.budget.judge((time_ns, moment.now_ms), cost, optional);
        match action {
            Some(Action::Sample(thinning)) => self.session.thin_growth(thinning),
            Some(Action::Pause(pid)) => self.session.heap_pause(pid),
            Some(Action::Resume(pid)) => self.session.heap_resume(pid),
            None => return,
        }
        log::warn!("budget: {action:?}");
    }

    /// What is left out now.
    fn left_out(&self) -> Vec<LeftOut> {
        let mut all = self.budget.left_out();
        all.extend(self.untimed.clone());
        all
    }

    /// The process that called its allocator most since the last reading.
    fn noisiest(&mut self, rows: &[Overview]) -> Option<Noisy> {
        let calls = |row: &Overview| Some((row.pid, row.heap_calls?));
        let now: FxHashMap<Pid, u64> = rows.iter().filter_map(calls).collect();
        let before = std::mem::replace(&mut self.heap_calls, now);
        let grown =
            |pid: &Pid, calls: u64| calls.saturating_sub(before.get(pid).copied().unwrap_or(0));
        let most = self
            .heap_calls
            .iter()
            .max_by_key(|(pid, calls)| grown(pid, **calls));
        let (&pid, _) = most?;
        let row = rows.iter().find(|row| row.pid == pid)?;
        Some(Noisy {
            pid,
            comm: row.comm.clone(),
        })
    }

    /// Has the stacks of new leak candidates named for the history, by a thread of its own.
    fn name_candidates(&mut self, found: &mpsc::Sender<naming::Done>) {
        let Some(archive) = &mut self.archive else {
            return;
        };
        let pids = archive.grown().take_nameless();
        let unnamed = pids.iter().filter_map(|&pid| self.session.unnamed(pid));
        let unnamed: Vec<Naming> = unnamed.collect();
        if !unnamed.is_empty() {
            naming::look_up(unnamed, self.session.began(), None, found.clone());
        }
    }

    /// They have their names.
    fn named(&mut self) {
        if let Some(archive) = &mut self.archive {
            archive.grown().named();
        }
    }

    fn answer(&mut self, asked: Asked, found: &mpsc::Sender<naming::Done>) {
        let Asked {
            viewer,
            request,
            reply,
        } = asked;
        let answer = match request {
            Request::Ps {} => Reply::Ps(self.listing(viewer)),
            Request::Report {
                pids,
                since: None,
                until: None,
                within,
            } => {
                let wanted = self.wanted(viewer, &pids, &within);
                if wanted.len() <= MAX_READ {
                    self.session.read_mappings(&wanted);
                    let unnamed = wanted.iter().filter_map(|&pid| self.session.unnamed(pid));
                    let unnamed: Vec<Naming> = unnamed.collect();
                    if !unnamed.is_empty() {
                        let asked = naming::Asked {
                            viewer,
                            pids,
                            within,
                            reply,
                        };
                        let began = self.session.began();
                        return naming::look_up(unnamed, began, Some(asked), found.clone());
                    }
                }
                self.report(pids.is_empty() && within.is_all(), &wanted)
            }
            Request::Report {
                pids,
                since,
                until,
                within,
            } => match &self.archive {
                // A query may take long: it has a thread of its own and answers by itself.
                Some(archive) => {
                    return past::answer(
                        archive.reading(),
                        viewer,
                        past::Query {
                            pids,
                            within,
                            since,
                            until,
                        },
                        reply,
                    );
                }
                None => Reply::error("no history is kept (history.enabled)"),
            },
            Request::Heap { on, selector } => self.heap(viewer, on, selector),
            Request::Mark { name } => match self.marks(viewer) {
                Ok(archive) => return archive.mark(name, now_ms(), reply),
                Err(refusal) => Reply::error(refusal),
            },
        };
        // The client may have gone.
        let _ = reply.send(answer);
    }

    fn heap(&mut self, viewer: Viewer, on: bool, selector: Selector) -> Reply {
        if viewer != Viewer::All {
            return Reply::error(
                "heap probes slow programs down: only root and the socket's group may set them",
            );
        }
        let done = match on {
            true => self.session.heap_on(selector),
            false => self.session.heap_off(selector),
        };
        match done {
            Ok(processes) => Reply::Heap {
                processes: processes as u64,
            },
            Err(error) => Reply::error(error),
        }
    }

    /// Where a viewer may set marks.
    fn marks(&self, viewer: Viewer) -> Result<&Archive, &'static str> {
        if viewer != Viewer::All {
            return Err("marks are everyone's: only root and the socket's group may set them");
        }
        let archive = self.archive.as_ref();
        archive.ok_or("no history is kept (history.enabled)")
    }

    /// What a viewer may see of the last reading.
    fn listing(&mut self, viewer: Viewer) -> Listing {
        let mut listing = self.table.listing().clone();
        if viewer != Viewer::All {
            let pids = listing
                .processes
                .iter()
                .map(|process| process.pid)
                .collect();
            let visible = self.visible(viewer, pids);
            listing
                .processes
                .retain(|process| visible.contains(&process.pid));
            listing.cgroups.clear();
        }
        listing
    }

    /// Those of the processes that the viewer may see. A pid may have passed on to another process since it was
    /// read: whoever had it then ended before its owner is asked for here, and the end is in the buffer by then.
    fn visible(&mut self, viewer: Viewer, pids: Vec<Pid>) -> Vec<Pid> {
        let visible: Vec<Pid> = pids
            .into_iter()
            .filter(|&pid| viewer.may_see(pid))
            .collect();
        while self.session.drain() {}
        let model = self.session.model();
        let same = |pid: &Pid| {
            model
                .start_of(*pid)
                .is_some_and(|start| self.table.has(*pid, start))
        };
        visible.into_iter().filter(same).collect()
    }

    /// The processes that run and are asked for; empty for all.
    fn wanted(&mut self, viewer: Viewer, pids: &[Pid], within: &Within) -> Vec<Pid> {
        while self.session.drain() {}
        let model = self.session.model();
        let known = model.running();
        let is_in = |pid: Pid| model.cgroup(pid).is_some_and(|cgroup| within.has(cgroup));
        let asked =
            |pid: &Pid| (pids.is_empty() || pids.contains(pid)) && (within.is_all() || is_in(*pid));
        let wanted: Vec<Pid> = known.into_iter().filter(asked).collect();
        match viewer {
            Viewer::All => wanted,
            Viewer::Own(_) => self.visible(viewer, wanted),
        }
    }

    /// The report as of now; `all`: of whatever is traced.
    fn report(&self, all: bool, wanted: &[Pid]) -> Reply {
        if wanted.is_empty() && !all {
            return Reply::error("no such process is traced, or it is another user's");
        }
        let mut document: Document = self.session.model().document_of(wanted);
        document.coverage.left_out = self.left_out();
        for process in &mut document.processes {
            redact(&mut process.command_line, self.config.redact_command_lines);
        }
        Reply::Report(Box::new(document))
    }
}

/// What a sample of the latencies leaves out.
fn untimed(one_in: u32) -> Option<LeftOut> {
    (one_in > 1).then(|| LeftOut {
        since_ms: now_ms(),
        until_ms: None,
        what: format!(
            "latencies of {} in {one_in} faults, which are counted all the same (fault_latency_sample)",
            one_in - 1
        ),
    })
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
