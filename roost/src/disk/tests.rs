//! Options, and files that become disks.

use super::{machine::Format, *};

fn parsed(text: &str) -> DiskPlan {
    text.parse().unwrap()
}

fn of_file(path: &Path, access: Access) -> DiskPlan {
    DiskPlan { source: Source::File(path.into()), partition: None, access, name: None }
}

#[test]
fn options_follow_the_file() {
    let plain = of_file(Path::new("a.img"), Access::Write);
    assert_eq!(parsed("a.img"), plain);
    assert_eq!(parsed("a.img,ro"), DiskPlan { access: Access::Read, ..plain.clone() });
    let named = DiskPlan { name: Some("root".into()), access: Access::Read, ..plain.clone() };
    assert_eq!(parsed("a.img,name=root,ro"), named);
    assert_eq!(parsed("a.img,ro,name=root"), named);
    assert_eq!(parsed("a,b.img,x").file(), Some(Path::new("a,b.img,x")));
    let part = Some(Partition::Number(2));
    assert_eq!(parsed("a.img,part=2"), DiskPlan { partition: part.clone(), ..plain.clone() });
    let on = Source::Machine(bundle::MachineDisk::Serial("x".into()));
    assert_eq!(parsed("disk=serial:x,part=2"), DiskPlan { source: on, partition: part, ..plain });
    for bad in [
        "",
        ",ro",
        "a,name=",
        "a,name=one that is far too long",
        "a,name=two words",
        "a,part=0",
        "disk=x",
        "disk=any",
        "disk=any,part=2",
    ] {
        assert!(bad.parse::<DiskPlan>().is_err(), "{bad}");
    }
}

#[test]
fn files_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let (raw, fixed) = (file("raw", &[0; 512]), file("fixed", &[0; 512]));
    let qcow2 = file("qcow2", b"QFI\xfb\0\0\0\x03");
    let mut files = Files::default();
    assert_eq!(files.add(&raw, &of_file(&raw, Access::Write)).unwrap(), "roost0");
    assert_eq!(files.add(&qcow2, &of_file(&qcow2, Access::Read)).unwrap(), "roost1");
    assert_eq!(files.add(&qcow2, &of_file(&qcow2, Access::Read)).unwrap(), "roost2");
    // Parts of one file are parts of one disk.
    let part = |number, access| {
        let partition = Some(Partition::Number(number));
        DiskPlan { partition, ..of_file(&fixed, access) }
    };
    for number in 1..4 {
        let access = if number == 2 { Access::Write } else { Access::Read };
        assert_eq!(files.add(&fixed, &part(number, access)).unwrap(), "roost3");
    }
    let drive = |number: usize| files.machine[number].drive().into_string().unwrap();
    assert!(drive(0).ends_with("format=raw,id=roost0,discard=unmap"));
    assert!(drive(1).ends_with("format=qcow2,id=roost1,readonly=on"));
    assert_eq!((files.machine.len(), files.machine[3].access), (4, Access::Write));
    assert_eq!(files.machine[1].format, Format::Qcow2);
    let mut reason =
        |path: &Path, access| format!("{:#}", files.add(path, &of_file(path, access)).unwrap_err());
    assert!(reason(&raw, Access::Read).contains("is given twice"));
    assert!(reason(&fixed, Access::Write).contains("is given twice"));
    assert!(reason(&dir.path().join("none"), Access::Read).contains("No such file"));
    assert!(reason(&file("empty", b""), Access::Read).contains("is empty"));
    assert!(reason(&file("odd", b"x"), Access::Read).contains("no whole sectors"));
    let locked = file("locked", &[0; 512]);
    let mut permissions = fs::metadata(&locked).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked, permissions).unwrap();
    assert!(reason(&locked, Access::Write).contains("may not be written: add `ro`"));
}
