//! Which kernel this is.

use nix::sys::utsname::uname;

/// Its release, as `uname -r` prints it; empty where it does not tell.
pub fn release() -> String {
    uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Whether it is of this version or a later one.
pub fn is_at_least(version: (u32, u32)) -> bool {
    parse(&release()) >= version
}

fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut next = || {
        let number = numbers.next().and_then(|number| number.parse().ok());
        number.unwrap_or(0)
    };
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(parse("6.1.0-49-cloud-amd64"), (6, 1));
        assert_eq!(parse("6.18.44-fc-v657"), (6, 18));
        assert_eq!(parse("7.0-rc1"), (7, 0));
        assert_eq!(parse("none"), (0, 0));
        assert!(parse("6.9.1") < parse("6.16"));
    }
}
