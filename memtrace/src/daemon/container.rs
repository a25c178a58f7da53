//! Containers and units, by the names that their cgroups have.

/// A 64-digit id is told by as many digits as its tools print.
const SHORT_ID: usize = 12;

/// What the path of a cgroup says of the container or unit in it: `docker:4f2a…`, `pod:UID/4f2a…`, `nginx.service`.
/// `None` where it names neither.
pub fn name(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let pod = parts.iter().rev().find_map(|part| pod(part));
    let container = parts
        .iter()
        .rev()
        .zip(parts.iter().rev().skip(1).map(Some).chain([None]));
    for (part, parent) in container {
        if let Some((runtime, id)) = container_of(part, parent.copied()) {
            let id = &id[..SHORT_ID];
            return Some(match pod {
                Some(pod) => format!("pod:{pod}/{id}"),
                None => format!("{runtime}:{id}"),
            });
        }
    }
    if let Some(pod) = pod {
        return Some(format!("pod:{pod}"));
    }
    let unit = |part: &&&str| part.ends_with(".service") || part.ends_with(".scope");
    parts.iter().rev().find(unit).map(|part| (*part).to_owned())
}

/// Runtime and id. systemd's driver: `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`;
/// cgroupfs: `docker/ID`, `crio-ID`, `libpod-ID`, and the bare id below a pod.
fn container_of<'a>(part: &'a str, parent: Option<&str>) -> Option<(&'static str, &'a str)> {
    const PREFIXES: [(&str, &str); 5] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("containerd-", "containerd"),
        ("crio-", "crio"),
        ("libpod-", "podman"),
    ];
    let part = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = part.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some((runtime, id));
        }
    }
    let runtime = match parent? {
        "docker" => "docker",
        parent if pod(parent).is_some() => "container",
        _ => return None,
    };
    is_id(part).then_some((runtime, part))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The uid of a pod: `kubepods-burstable-podUID.slice` with underscores, or `podUID`.
fn pod(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match part.strip_prefix("kubepods") {
        Some(rest) => rest.rsplit_once("-pod")?.1,
        None => part.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    // A uid, or the hash of a static pod's manifest.
    let known = uid.len() >= 32
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    known.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f2a9c3b1d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8";
    const UID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

    #[test]
    fn runtimes_are_told_by_their_paths() {
        let under = UID.replace('-', "_");
        let cases = [
            (
                format!("/system.slice/docker-{ID}.scope"),
                Some("docker:4f2a9c3b1d5e".to_owned()),
            ),
            (format!("/docker/{ID}"), Some("docker:4f2a9c3b1d5e".into())),
            (
                format!("/docker/{ID}/init.scope"),
                Some("docker:4f2a9c3b1d5e".into()),
            ),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                Some("podman:4f2a9c3b1d5e".into()),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some(format!("pod:{UID}/4f2a9c3b1d5e")),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope"),
                Some(format!("pod:{UID}/4f2a9c3b1d5e")),
            ),
            (
                format!("/kubepods/besteffort/pod{UID}/{ID}"),
                Some(format!("pod:{UID}/4f2a9c3b1d5e")),
            ),
            (
                format!("/kubepods/besteffort/pod{UID}"),
                Some(format!("pod:{UID}")),
            ),
            (
                "/system.slice/nginx.service".into(),
                Some("nginx.service".into()),
            ),
            (
                "/user.slice/user-0.slice/session-3.scope".into(),
                Some("session-3.scope".into()),
            ),
            ("/podium/docker".into(), None),
            (format!("/elsewhere/{ID}"), None),
            ("/".into(), None),
        ];
        for (path, expected) in cases {
            assert_eq!(name(&path), expected, "{path}");
        }
    }
}
