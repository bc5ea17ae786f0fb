//! Writes `docs/compatibility.md` anew from the version table and the recorded results of the client matrix.

use anyhow::{Context, Result};
use chronik_tests::compatibility::{page, page_path};

fn main() -> Result<()> {
    let path = page_path();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&path, page()?).with_context(|| format!("writing {}", path.display()))?;
    println!("docs/compatibility.md written");
    Ok(())
}
