//! What the service manager is told, where one started the daemon (sd_notify(3)).

use sd_notify::NotifyState;

/// The daemon answers questions now.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// Everything was read once more: told each second, which is often enough for any watchdog.
pub fn alive() {
    if sd_notify::watchdog_enabled().is_some() {
        notify(NotifyState::Watchdog);
    }
}

/// The daemon ends in good order.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("the service manager was not told: {error}");
    }
}
