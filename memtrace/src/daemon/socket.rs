//! The socket: who may connect, and clients that are slow, silent or many.
//!
//! A connection is one question and one answer. Each has a task, a time-out for either way and a share of the memory
//! for answers. Beyond the limit the one that has been silent for longest gives way, and where none is silent the
//! newcomer is refused at once. Nothing here waits for a client: only its own task does.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use nix::unistd::{Gid, Group, chown};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    task,
    time::timeout,
};

use super::{
    Config, DaemonError,
    access::Viewer,
    frame::{self, FrameError},
    places::{Place, Places},
    protocol::{Answer, MAX_ANSWER, MAX_QUESTION, Question, Reply, Request, VERSION},
};

/// How long a client may take to ask.
const ASK: Duration = Duration::from_secs(5);
/// How long a client may take to read.
const READ: Duration = Duration::from_secs(10);
/// How long an answer may take to be made.
const ANSWER: Duration = Duration::from_secs(60);
/// KiB of answers that clients have not read yet, in sum.
const UNREAD_KIB: usize = 128 << 10;

/// Said where there is no place.
const TOO_MANY: &str = "too many clients at a time: try again";

/// A question on its way to the daemon, and where its answer goes.
pub struct Asked {
    /// Who asks.
    pub viewer: Viewer,
    /// What.
    pub request: Request,
    /// The way back.
    pub reply: oneshot::Sender<Reply>,
}

/// The listening socket; its file goes with it.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    shared: Rc<Shared>,
}

/// What all clients share.
struct Shared {
    group: Option<Gid>,
    /// Places for clients who see everything.
    clients: Places,
    /// As many for those who see what is their own: they cannot keep the others out.
    users: Places,
    /// Memory for answers.
    unread: Semaphore,
    questions: mpsc::Sender<Asked>,
}

impl Server {
    /// Listens where the configuration says. A socket that a dead daemon left is replaced: the lock tells that it is dead.
    pub fn open(config: &Config, questions: mpsc::Sender<Asked>) -> Result<Self, DaemonError> {
        let path = config.socket_path();
        let group = config.socket.group.as_deref().map(group).transpose()?;
        let failed = |source| DaemonError::File {
            what: "listen on",
            path: path.clone(),
            source,
        };
        let listener = listen(&path, group, config.socket.users).map_err(failed)?;
        Ok(Self {
            listener,
            path,
            shared: Rc::new(Shared {
                group,
                clients: Places::new(config.socket.clients),
                users: Places::new(config.socket.clients),
                unread: Semaphore::new(UNREAD_KIB),
                questions,
            }),
        })
    }

    /// Takes clients until the daemon ends.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shared = Rc::clone(&self.shared);
                    task::spawn_local(async move { shared.admit(stream).await });
                }
                Err(error) => {
                    // Out of descriptors, say: what waits stays in the backlog meanwhile.
                    log::warn!("a client was not accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("{} stays: {error}", self.path.display());
        }
    }
}

/// Binds with no access for others until mode and group are set.
fn listen(path: &Path, group: Option<Gid>, users: bool) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener?;
    chown(path, None, group)?;
    let mode = if users {
        0o666
    } else if group.is_some() {
        0o660
    } else {
        0o600
    };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

fn group(name: &str) -> Result<Gid, DaemonError> {
    let found = Group::from_name(name).ok().flatten();
    let group = found.ok_or_else(|| DaemonError::NoGroup {
        name: name.to_owned(),
    })?;
    Ok(group.gid)
}

impl Shared {
    /// Serves a client if there is room for one more.
    async fn admit(&self, stream: UnixStream) {
        let viewer = match stream.peer_cred() {
            Ok(peer) => Viewer::of(&peer, self.group),
            Err(error) => return refuse(stream, format!("nobody knows who asks: {error}")),
        };
        let places = match viewer {
            Viewer::All => &self.clients,
            Viewer::Own(_) => &self.users,
        };
        match places.take().await {
            Some((place, gives_way)) => self.serve(stream, viewer, place, gives_way).await,
            None => refuse(stream, TOO_MANY),
        }
    }

    async fn serve(
        &self,
        mut stream: UnixStream,
        viewer: Viewer,
        place: Place<'_>,
        gives_way: oneshot::Receiver<()>,
    ) {
        let asked = tokio::select! {
            biased;
            asked = timeout(ASK, frame::read_line(&mut stream, MAX_QUESTION)) => asked,
            _ = gives_way => return refuse(stream, TOO_MANY),
        };
        place.asked();
        let reply = match asked {
            Ok(Ok(line)) => self.answer(viewer, &line).await,
            Ok(Err(FrameError::Io(_) | FrameError::Cut)) => return,
            Ok(Err(error)) => Reply::error(error),
            Err(_) => Reply::error("no question came in time"),
        };
        let bytes = line(&reply);
        drop(reply);
        let kib = (bytes.len() >> 10) as u32 + 1;
        let sent = timeout(READ, async {
            let _share = self.unread.acquire_many(kib).await;
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        });
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("a client went away: {error}"),
            Err(_) => log::debug!("a client did not read its answer in time"),
        }
    }

    async fn answer(&self, viewer: Viewer, line: &[u8]) -> Reply {
        let question: Question = match serde_json::from_slice(line) {
            Ok(question) => question,
            Err(error) => return Reply::error(format!("the question is not understood: {error}")),
        };
        if question.version != VERSION {
            return Reply::error(format!(
                "the daemon speaks version {VERSION} of the protocol, not {}",
                question.version
            ));
        }
        let (reply, answer) = oneshot::channel();
        let asked = Asked {
            viewer,
            request: question.request,
            reply,
        };
        if self.questions.send(asked).await.is_err() {
            return Reply::error("the daemon ends");
        }
        match timeout(ANSWER, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Reply::error("the daemon ends"),
            Err(_) => Reply::error("the answer took too long"),
        }
    }
}

/// Refuses a client. Not waited for: what does not fit into the socket's buffer at once is not sent.
fn refuse(stream: UnixStream, reason: impl std::fmt::Display) {
    let _ = stream.try_write(&line(&Reply::error(reason)));
}

/// The answer as a line.
fn line(reply: &Reply) -> Vec<u8> {
    let answer = |reply| Answer {
        version: VERSION,
        reply,
    };
    let told = |reply: &Reply| serde_json::to_vec(&answer(reply.clone()));
    let fits = told(reply).ok().filter(|bytes| bytes.len() < MAX_ANSWER);
    let too_long = || {
        told(&Reply::error(
            "the answer is too long: ask for single processes with -p",
        ))
    };
    let mut bytes = fits.or_else(|| too_long().ok()).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
