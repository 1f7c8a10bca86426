//! `scsi-pr disk`: serves files and block devices as SCSI disks over iSCSI.

mod chap;
mod config;
mod control;
pub(crate) mod hex;
mod host;
pub(crate) mod names;
pub(crate) mod options;
pub(crate) mod protocol;
mod served;
mod store;
mod unit;

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use scsi_pr_daemon::notify::ServiceManager;
use scsi_pr_daemon::privileges::Privileges;
use scsi_pr_daemon::sandbox::Sandbox;
use scsi_pr_daemon::signals::SignalFd;
use scsi_pr_daemon::{limits, signals};
use scsi_pr_iscsi::directory::Account;
use scsi_pr_iscsi::{Portal, Server, ServerOptions};
use tracing::{error, info, warn};

use crate::error_text::with_causes;
use crate::log;
use config::Config;
use options::ServeDisks;
use served::Served;
use unit::Process;

/// Serves disks until a signal ends the program.
pub(crate) fn run(options: &ServeDisks) -> Result<()> {
    signals::block()?;
    let (stop, reload) = (signals::terminate()?, signals::reload()?);
    log::start(options.log_level());
    let service_manager = ServiceManager::from_environment();
    let config = Config::read(options)?;
    let accounts = accounts(&config)?;
    let portals = listen(&config)?;
    let control_path = control_path(&config)?;
    let (control, _control_file) = control::listen(&control_path)?;
    // The connection, and its clones.
    let connections = limits::raise(4, 64 + 2 * config.units().count() as u64);
    // Before the first thread: in Linux capabilities belong to threads.
    Privileges::none().keep_only_these().context("cannot drop privileges")?;
    let store = scsi_pr_store::open(&config.store)?;
    enter_sandbox(options, &config, &control_path);
    let process = Process {
        store,
        host: host::this_host()?,
        control: control_path.display().to_string(),
        target_ports: 1..=u16::try_from(config.portal_group.len())?,
    };
    let served = Arc::new(Served::new(process));
    let opened = config.units().try_for_each(|unit| served.add(unit, &options.takeover));
    let result = opened.and_then(|()| {
        log_start(&config, &portals);
        let mut bounds = ServerOptions::default();
        bounds.connections = bounds.connections.min(connections);
        let server = Server::new(portals, served.directory(&config, accounts), bounds)?;
        control::serve(control, Arc::clone(&served)).context("cannot start a thread")?;
        let reloader = Reloader { options, served: &served, server: &server, service_manager: &service_manager };
        serve(&reloader, config, &stop, &reload)
    });
    served.close();
    result
}

/// Serves until `stop` has a signal, and reads the settings again on `reload`.
fn serve(reloader: &Reloader<'_>, config: Config, stop: &SignalFd, reload: &SignalFd) -> Result<()> {
    std::thread::scope(|scope| {
        let ended = std::io::pipe().context("cannot make a pipe")?;
        std::thread::Builder::new()
            .name("reload".into())
            .spawn_scoped(scope, move || reloader.run(config, reload, &ended.0))
            .context("cannot start a thread")?;
        reloader.service_manager.ready();
        let result = reloader.server.run(stop.as_fd()).context("cannot serve");
        reloader.service_manager.stopping();
        drop(ended.1);
        result
    })
}

/// The accounts of the CHAP file. Without one, the addresses must be those of loopback.
fn accounts(config: &Config) -> Result<Vec<Account>> {
    if let Some(path) = &config.chap {
        return chap::read(path);
    }
    for address in config.addresses() {
        ensure!(
            address.ip().is_loopback(),
            "{address} can be reached from other hosts, and without CHAP every peer is believed its initiator name: give \
             --chap=FILE, or an address of loopback"
        );
    }
    Ok(Vec::new())
}

fn listen(config: &Config) -> Result<Vec<Portal>> {
    let mut portals = Vec::new();
    for (group, addresses) in (1..).zip(&config.portal_group) {
        for address in &addresses.addresses {
            let listener = TcpListener::bind(address.0).with_context(|| format!("cannot listen on {}", address.0))?;
            portals.push(Portal { listener, group });
        }
    }
    Ok(portals)
}

/// Confines the process to its media, its store and the directory of its control socket. A file of settings may bring new
/// media later, in the directories of those that it names now.
fn enter_sandbox(options: &ServeDisks, config: &Config, control: &Path) {
    let resolved = config.units().filter_map(|unit| unit.path.canonicalize().ok());
    let media: Vec<_> = match options.config {
        Some(_) => resolved.filter_map(|path| path.parent().map(Path::to_owned)).collect(),
        None => resolved.collect(),
    };
    let control = control.parent().map(Path::to_owned);
    let directories: Vec<_> = scsi_pr_store::directory_of(&config.store).into_iter().chain(control).collect();
    for missing in Sandbox::new().permit_writing(&media).permit_changing(&directories).enter() {
        warn!("{missing}");
    }
}

/// The path of the control socket.
fn control_path(config: &Config) -> Result<PathBuf> {
    if let Some(path) = &config.control {
        ensure!(path.is_absolute(), "the path of the control socket, {}, must be absolute", path.display());
        return Ok(path.clone());
    }
    let directory = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !rustix::process::geteuid().is_root() => PathBuf::from(runtime).join("scsi-pr"),
        _ => PathBuf::from("/run/scsi-pr"),
    };
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}: give --control=PATH", directory.display()))?;
    Ok(directory.join("disk.sock"))
}

fn log_start(config: &Config, portals: &[Portal]) {
    for Portal { listener, group } in portals {
        if let Ok(address) = listener.local_addr() {
            info!("listening on {address} (portal group {group})");
        }
    }
    if config.chap.is_none() {
        warn!("without CHAP, any local user can pose as any initiator at these addresses");
    }
}

/// Reads the settings again on SIGHUP.
struct Reloader<'a> {
    options: &'a ServeDisks,
    served: &'a Served,
    server: &'a Server,
    service_manager: &'a ServiceManager,
}

impl Reloader<'_> {
    /// Until `ended` is at its end.
    fn run(&self, mut current: Config, signal: &SignalFd, ended: &impl AsFd) {
        while signals::wait(signal, ended) == signals::Wait::Signal {
            self.service_manager.reloading();
            match self.reload(&current) {
                Ok(new) => current = new,
                Err(error) => error!("nothing is changed: {}", with_causes(&error)),
            }
            self.service_manager.ready();
        }
    }

    fn reload(&self, current: &Config) -> Result<Config> {
        let new = Config::read(self.options)?;
        let accounts = accounts(&new)?;
        for (what, is_same) in [
            ("the store", new.store == current.store),
            ("a portal group", new.portal_group == current.portal_group),
            ("the control socket", new.control == current.control),
        ] {
            ensure!(is_same, "a change of {what} takes a restart");
        }
        self.served.reload(&new);
        self.server.set_directory(self.served.directory(&new, accounts));
        info!("read the settings again: {} units are served", self.served.units().len());
        Ok(new)
    }
}
