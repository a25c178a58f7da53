//! Containers and units, by the names that their cgroups have.

/// A 64-digit id is told by as many digits as its tools print.
const SHORT_ID: usize = 12;

/// The digits of an id that tell it from others at least: what runtimes accept in its place.
const SHORTEST_ID: usize = 4;

/// What the path of a cgroup says of the container or unit in it: `docker:4f2a…`, `pod:UID/4f2a…`, `nginx.service`.
/// `None` where it names neither.
pub fn name(path: &str) -> Option<String> {
    let found = find(path);
    match (found.container, found.pod) {
        (Some((_, id)), Some(pod)) => Some(format!("pod:{pod}/{}", &id[..SHORT_ID])),
        (Some((runtime, id)), None) => Some(format!("{runtime}:{}", &id[..SHORT_ID])),
        (None, Some(pod)) => Some(format!("pod:{pod}")),
        (None, None) => found.unit.map(str::to_owned),
    }
}

/// Whether the path of a cgroup is of this container, pod or unit: named as [`name`] does, or by the id of the
/// container, by its first digits, or by the uid of the pod.
pub fn is_in(path: &str, wanted: &str) -> bool {
    let Found {
        container,
        pod,
        unit,
    } = find(path);
    let bare = wanted
        .strip_prefix("pod:")
        .unwrap_or(wanted)
        .to_ascii_lowercase();
    let id_fits = |id: &str, digits: &str| digits.len() >= SHORTEST_ID && id.starts_with(digits);
    if let Some((runtime, id)) = container {
        let digits = match bare.split_once(['/', ':']) {
            Some((before, digits)) if before == runtime || pod.as_deref() == Some(before) => digits,
            Some(_) => return false,
            None => bare.as_str(),
        };
        if id_fits(id, digits) {
            return true;
        }
    }
    pod.is_some_and(|pod| pod == bare) || unit.is_some_and(|unit| unit == wanted)
}

/// Whether `own` is the cgroup `path` or below it.
pub fn is_below(own: &str, path: &str) -> bool {
    let below = own.strip_prefix(path.trim_end_matches('/'));
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What a path names.
struct Found<'a> {
    /// Runtime and id.
    container: Option<(&'static str, &'a str)>,
    pod: Option<String>,
    unit: Option<&'a str>,
}

fn find(path: &str) -> Found<'_> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let parents = parts.iter().rev().skip(1).map(Some).chain([None]);
    let mut with_parents = parts.iter().rev().zip(parents);
    let is_unit = |part: &&&str| part.ends_with(".service") || part.ends_with(".scope");
    Found {
        container: with_parents.find_map(|(part, parent)| container_of(part, parent.copied())),
        pod: parts.iter().rev().find_map(|part| pod(part)),
        unit: parts.iter().rev().find(is_unit).copied(),
    }
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
            // Whatever is shown may be typed.
            if let Some(shown) = expected {
                assert!(is_in(&path, &shown), "{path}: {shown}");
            }
        }
    }

    #[test]
    fn containers_are_found_by_what_people_know_of_them() {
        let pod = format!("/kubepods/besteffort/pod{UID}/{ID}");
        let short = format!("pod:{UID}/4f2a");
        for wanted in [UID, ID, "4f2a", "4F2A9C", &format!("pod:{UID}"), &short] {
            assert!(is_in(&pod, wanted), "{wanted}");
        }
        let docker = format!("/system.slice/docker-{ID}.scope");
        for wanted in ["docker:4f2a9c", ID, "4f2a9c3b1d5e"] {
            assert!(is_in(&docker, wanted), "{wanted}");
        }
        let wrong = [
            "4f2",
            "podman:4f2a9c3b1d5e",
            UID,
            "docker:",
            "5f2a",
            "docker:4f2a9c3b1d5e0",
        ];
        for wanted in wrong {
            assert!(!is_in(&docker, wanted), "{wanted}");
        }
        assert!(is_in("/system.slice/nginx.service/worker", "nginx.service"));
        assert!(!is_in("/system.slice/nginx.service", "nginx"));
    }
}
