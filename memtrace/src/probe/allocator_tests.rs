use super::*;

#[test]
#[ignore]
fn dump() {
    for path in std::env::var("DUMP").unwrap().split(':') {
        let data = std::fs::read(path).unwrap();
        println!("== {path}");
        match find(&data) {
            Ok(all) => {
                for a in all {
                    println!("{} internal {:x?}", a.name, a.internal);
                    for f in &a.functions {
                        println!(
                            "  {:40} {:?} {:#x}+{} entry +{} {} {:x?}",
                            f.name,
                            f.function,
                            f.virtual_address,
                            f.size,
                            f.entry.file_offset - f.file_offset,
                            f.entry.emulated,
                            f.exit
                        );
                    }
                    for u in a.unseen {
                        println!("  unseen {} {}", u.name, u.reason);
                    }
                }
            }
            Err(e) => println!("{e}"),
        }
    }
}
