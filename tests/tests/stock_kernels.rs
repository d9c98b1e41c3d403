//! Stock kernels boot to a shell with little and much memory, and power off.

use roost_tests::{built::Kernel, folder::Folder};

/// Boots to a shell, looks around and powers off.
fn boots(kernel: Kernel, memory: &str) {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = folder.run(&kernel.file()).initrd(&initrd).memory(memory);
    let mut guest = run.append("console=hvc0 quiet").piped();
    guest.expect_shell();
    assert_eq!(guest.succeed("uname -r").trim_end(), kernel.release());

    let cpuinfo = guest.succeed("cat /proc/cpuinfo");
    assert_eq!(cpuinfo.matches("processor\t: ").count(), 1, "{cpuinfo}");
    for flag in ["fpu", "nx", "lm", "hypervisor"] {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        assert!(flags.split(' ').any(|word| word == flag), "no {flag}: {cpuinfo}");
    }

    // A kernel keeps a tenth for itself, and 40 MiB if it is built for every machine.
    let total = guest.succeed("grep MemTotal: /proc/meminfo");
    let kilobytes: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    let given = mebibytes(memory);
    assert!((given - given / 10 - 40..given).contains(&(kilobytes >> 10)), "{memory}: {total}");

    let sum = guest.succeed("seq 1 1000 | awk '{ sum += $1 } END { print sum }' | tee /tmp/sum");
    assert_eq!((sum.as_str(), guest.succeed("cat /tmp/sum").as_str()), ("500500\n", "500500\n"));
    assert_eq!(guest.shell("false").0, 1);

    // No line may say that the kernel found something wrong with itself; grep finds none.
    let (status, found) = guest.shell("dmesg | grep -E 'WARNING: |BUG: |Oops|Call Trace'");
    assert_eq!((status, found.as_str()), (1, ""));

    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    let stats = ended.stats.expect("statistics");
    assert_eq!(stats.name(), "vmlinuz");
    assert_eq!(stats.counter("exits"), stats.all_exits(), "every exit has a reason");
    assert!(stats.exits("timer") > 0 && stats.counter("fills") > 0);
}

fn mebibytes(memory: &str) -> u64 {
    let (number, unit) = memory.split_at(memory.len() - 1);
    number.parse::<u64>().unwrap() << if unit == "G" { 10 } else { 0 }
}

macro_rules! boots {
    ($($name:ident: $kernel:ident, $memory:literal;)*) => {
        $(
            #[test]
            fn $name() {
                boots(Kernel::$kernel, $memory);
            }
        )*
    };
}

boots! {
    cloud_with_128m: Cloud, "128M";
    cloud_with_512m: Cloud, "512M";
    cloud_with_4g: Cloud, "4G";
    generic_with_128m: Generic, "128M";
    generic_with_512m: Generic, "512M";
    generic_with_4g: Generic, "4G";
    later_cloud_with_128m: Cloud612, "128M";
    later_cloud_with_512m: Cloud612, "512M";
    later_cloud_with_4g: Cloud612, "4G";
}
