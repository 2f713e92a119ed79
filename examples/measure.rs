//! throwaway
use governance_stream::storage::{Batch, Engine as _, RedbEngine, Table};
use redb::{Database, TableDefinition};
use std::{fs, io::Write as _, os::unix::fs::FileExt as _, time::Instant};

const T: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench/rows");

fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn time(name: &str, rounds: usize, mut f: impl FnMut(u64)) -> f64 {
    for i in 0..5 {
        f(i);
    }
    let c = cpu();
    let mut v = Vec::new();
    for i in 0..rounds {
        let t = Instant::now();
        f(5 + i as u64);
        v.push(t.elapsed().as_secs_f64());
    }
    let c = (cpu() - c) / rounds as f64;
    let m = median(v);
    println!(
        "{name:40} median {:8.3} ms   cpu {:7.3} ms",
        m * 1e3,
        c * 1e3
    );
    m
}

fn key(n: u64, random: bool) -> Vec<u8> {
    if random {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec()
    } else {
        n.to_be_bytes().to_vec()
    }
}

fn main() {
    let dir = tempfile::tempdir_in(
        std::env::args()
            .nth(1)
            .unwrap_or("/work/wt-redb/target".into()),
    )
    .unwrap();
    let base: u64 = std::env::args().nth(2).map_or(0, |s| s.parse().unwrap());
    for random in [false, true] {
        println!(
            "--- {} keys, {base} rows before",
            if random { "random" } else { "sequential" }
        );
        for rows in [1_u64, 100, 1000] {
            let rounds = if rows == 1000 { 100 } else { 300 };
            let path = dir.path().join(format!("raw{random}{rows}"));
            let file = fs::File::create(&path).unwrap();
            (&file).write_all(&vec![0; 64 << 20]).unwrap();
            file.sync_all().unwrap();
            let data = vec![7_u8; 300 * rows as usize];
            let raw = time(&format!("write+2 fdatasync {rows}"), rounds, |i| {
                file.write_all_at(&data, (i * data.len() as u64) % (32 << 20))
                    .unwrap();
                file.sync_data().unwrap();
                file.write_all_at(&data[..300], 40 << 20).unwrap();
                file.sync_data().unwrap();
            });
            for (name, two) in [
                ("redb one-phase, bare", false),
                ("redb two-phase quick-repair, bare", true),
            ] {
                let db = Database::builder()
                    .set_cache_size(32 << 20)
                    .create(dir.path().join(format!("{two}{random}{rows}")))
                    .unwrap();
                let mut n = 0;
                let mut go = |count: u64, n: &mut u64| {
                    let mut tx = db.begin_write().unwrap();
                    tx.set_two_phase_commit(two);
                    tx.set_quick_repair(two);
                    {
                        let mut t = tx.open_table(T).unwrap();
                        let mut keys: Vec<_> = (0..count).map(|i| key(*n + i, random)).collect();
                        keys.sort();
                        for k in keys {
                            t.insert(k.as_slice(), [7_u8; 300].as_slice()).unwrap();
                        }
                        *n += count;
                    }
                    {
                        let mut t = tx
                            .open_table(TableDefinition::<&[u8], &[u8]>::new("engine"))
                            .unwrap();
                        t.insert(b"n".as_slice(), n.to_le_bytes().as_slice())
                            .unwrap();
                    }
                    tx.commit().unwrap();
                };
                while n < base {
                    go(20_000, &mut n);
                }
                let m = time(&format!("{name} {rows}"), rounds, |_| go(rows, &mut n));
                println!("   ratio to raw {:.2}", raw / m);
            }
            let engine =
                RedbEngine::create(dir.path().join(format!("e{random}{rows}")), false).unwrap();
            engine.open().unwrap();
            let (mut n, mut c) = (0, 0);
            let mut go = |count: u64| {
                let mut b = Batch::new();
                for i in 0..count {
                    b.put(Table::new("bench/rows"), key(n + i, random), vec![7; 300]);
                }
                n += count;
                c += 1;
                engine.commit(c, &[b]).unwrap();
                n
            };
            while go(if base > 0 { 20_000 } else { 0 }) < base {}
            let m = time(&format!("engine {rows}"), rounds, |_| {
                go(rows);
            });
            println!(
                "   ratio to raw {:.2}   {:?}",
                raw / m,
                engine.usage().unwrap()
            );
            if base > 0 {
                let t = Instant::now();
                engine.open().unwrap();
                println!("   reopened in {:?}", t.elapsed());
            }
        }
    }
}
