//! What the daemon takes while nothing is asked of it, and while guests make noise; and that an agent
//! answers before its image's init is done. One test at a time: processor time is counted.

use enisle_tests_vm::{Daemon, Site, ok};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const VMS: usize = 4;
/// Time over which processor time is counted.
const WHILE: Duration = Duration::from_secs(5);
/// A busy machine's threads that served something end after a while.
const PATIENCE: Duration = Duration::from_secs(90);

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn group(image: &str) -> String {
    format!(
        "- name: agents\n  count: 0\n  image: {image}\n  network: {{ mode: isolated, range: \"169.254.100.0/22\" }}"
    )
}

/// What a daemon has used so far.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// Hundredths of a second of processor time.
    ticks: u64,
    /// How often one of its threads was taken off a processor.
    switches: u64,
    threads: usize,
}

impl Used {
    fn by(daemon: &Daemon<'_>) -> Self {
        let process = format!("/proc/{}", daemon.pid());
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
        // After the name: utime and stime are fields 14 and 15 (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let tasks: Vec<String> = fs::read_dir(format!("{process}/task"))
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
            .collect();
        let of = |status: &String| -> u64 {
            status
                .lines()
                .filter(|line| line.contains("ctxt_switches:"))
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                .sum()
        };
        Self { ticks, switches: tasks.iter().map(of).sum(), threads: tasks.len() }
    }

    /// What it uses from now on, for a while.
    fn in_a_while(daemon: &Daemon<'_>) -> Self {
        let before = Self::by(daemon);
        std::thread::sleep(WHILE);
        let after = Self::by(daemon);
        Self {
            ticks: after.ticks - before.ticks,
            // A thread that ended took its count along.
            switches: after.switches.saturating_sub(before.switches),
            threads: after.threads,
        }
    }
}

#[test]
fn an_idle_daemon_takes_no_processor_time_and_no_thread_for_each_vm() {
    let _alone = alone();
    let site = Site::new();
    let daemon = site.up(&group("minimal"));
    let without = Used::by(&daemon).threads;
    for _ in 0..VMS {
        ok(&daemon.run(&["vm", "new", "--wait"]));
    }
    let begun = Instant::now();
    loop {
        let used = Used::in_a_while(&daemon);
        // Two of the ticks are the machine's to miscount, and so are some wake-ups; a loop that looks
        // ten times a second is above either.
        if used.ticks <= 2 && used.switches < 40 && used.threads < without + VMS - 1 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{used:?} in {WHILE:?}; {without} threads without VMs");
    }
    // What is counted is seen: some commands are more than an idle daemon may take.
    // Once more where a thread that ended meanwhile took its count along.
    let mut looks = (0..3).map(|_| {
        let before = Used::by(&daemon);
        for _ in 0..10 {
            ok(&daemon.run(&["vm", "exec", "agents-1", "true"]));
        }
        let after = Used::by(&daemon);
        println!("{before:?} {after:?}");
        after.switches.saturating_sub(before.switches)
    });
    assert!(looks.any(|switches| switches > 40));
    assert!(daemon.stop().success());
}

#[test]
fn a_guest_that_floods_its_console_costs_a_bounded_share_and_others_are_served() {
    let _alone = alone();
    let site = Site::new();
    let daemon = site.up(&group("minimal"));
    for _ in 0..2 {
        ok(&daemon.run(&["vm", "new", "--wait"]));
    }
    let log = site.state_dir().join("vms/agents-1/console.log");
    let length = || fs::metadata(&log).unwrap().len();
    let quiet = length();
    let flood = "(while true; do cat /proc/kallsyms; done >/dev/console 2>&1 </dev/null &)";
    assert_eq!(daemon.sh("agents-1", flood), "");
    let begun = Instant::now();
    while length() < quiet + 10_000 {
        assert!(begun.elapsed() < PATIENCE, "no flood: {} bytes", length() - quiet);
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = Used::in_a_while(&daemon);
    assert!(used.ticks < 250, "{used:?} in {WHILE:?}: more than half a processor");
    assert_eq!(daemon.sh("agents-2", "echo served"), "served");
    ok(&daemon.run(&["vm", "delete", "agents-1"]));
    assert!(daemon.stop().success());
}

#[test]
fn the_agent_answers_before_the_images_init_is_done() {
    let _alone = alone();
    let site = Site::new();
    let daemon = site.up(&group("default"));
    ok(&daemon.run(&["vm", "new", "--wait"]));
    let reached = "systemctl is-active multi-user.target 2>&1 || true";
    assert_ne!(daemon.sh("agents-1", reached), "active", "exec works before");
    // The same question has the other answer once the boot is over.
    let until_asked = "until [ -S /run/systemd/private ]; do sleep 0.2; done";
    let _ = daemon.sh("agents-1", &format!("{until_asked}; systemctl is-system-running --wait || true"));
    assert_eq!(daemon.sh("agents-1", reached), "active");
    // By then the disk has the size it was given.
    let room = daemon.sh("agents-1", "df --output=size -BM / | tail -1 | tr -dc 0-9");
    assert!(room.parse::<u32>().unwrap() > 3000, "{room} MiB of 4 GiB");
    assert!(daemon.stop().success());
}

#[test]
fn many_launches_at_once_stay_in_order_and_a_queued_one_can_be_deleted() {
    let _alone = alone();
    let site = Site::new();
    let config = site.config(&group("minimal"));
    let text = fs::read_to_string(&config).unwrap().replace("config:\n", "config:\n  start_at_once: 1\n");
    fs::write(&config, text).unwrap();
    let daemon = Daemon::start(&site, &config, &[]).unwrap();
    for _ in 0..3 {
        ok(&daemon.run(&["vm", "new"]));
    }
    let list = daemon.json(&["vm", "list"]);
    let last = &list[2];
    assert_eq!((&last["name"], &last["state"]), (&"agents-3".into(), &"creating".into()), "{list}");
    assert_eq!(last["reason"], "queued: 1 wait before it, 1 are starting", "{list}");
    ok(&daemon.run(&["vm", "delete", "agents-3"]));
    let begun = Instant::now();
    loop {
        let list = daemon.json(&["vm", "list"]);
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), 2);
        let starting = list.iter().filter(|vm| vm["state"] != "running" && vm["reason"].is_null()).count();
        assert!(starting <= 1, "{list:?}");
        if list.iter().all(|vm| vm["state"] == "running") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{list:?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(daemon.stop().success());
}
