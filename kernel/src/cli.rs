//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::{install, janitor, server, session, stock, warm};

const USAGE: &str = "\
tunebook-kernel: the Jupyter kernel of tunebook

  tunebook-kernel warm    --project DIR [--template DIR]
      builds what the cells link to, once, into the template directory; does nothing when it is fresh
  tunebook-kernel install --prefix DIR --project DIR [--template DIR]
      writes the kernelspecs into DIR/share/jupyter/kernels
  tunebook-kernel clean   --project DIR [--template DIR] [--all]
      removes what kernels that are gone have left behind; with --all, the template too
  tunebook-kernel run FILE
      serves the connection file FILE (started by Jupyter)
  tunebook-kernel --control_file FILE
      the same as a stock evcxr kernel

The template directory is DIR/target/notebook/template unless it is given. It has to be on the same
file system as DIR/target for the large files to be shared instead of copied.";

/// Does what the arguments say.
pub(crate) fn run(args: Vec<String>) -> Result<()> {
    let Some((command, rest)) = args.split_first() else {
        println!("{USAGE}");
        return Ok(());
    };
    match command.as_str() {
        "warm" => {
            let options = Options::parse(rest)?;
            warm::warm(&options.layout()?)
        }
        "install" => {
            let options = Options::parse(rest)?;
            let prefix = options.prefix.as_deref().context("install needs --prefix DIR")?;
            install::install(prefix, &options.layout()?)
        }
        "clean" => {
            let options = Options::parse(rest)?;
            session::clean(&options.layout()?, options.all)
        }
        "run" => {
            let [file, ..] = rest else { bail!("{command} needs the path of a connection file") };
            server::run(file.as_ref())
        }
        "--control_file" => {
            let [file, ..] = rest else { bail!("{command} needs the path of a connection file") };
            stock::run(file.as_ref())
        }
        "janitor" => {
            let [dir, ..] = rest else { bail!("janitor needs a directory") };
            janitor::wait(dir.as_ref())
        }
        "--help" | "-h" | "help" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown command {other:?}\n\n{USAGE}"),
    }
}

#[derive(Default)]
struct Options {
    project: Option<PathBuf>,
    template: Option<PathBuf>,
    prefix: Option<PathBuf>,
    all: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value =
                || args.next().map(PathBuf::from).with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--project" => options.project = Some(value()?),
                "--template" => options.template = Some(value()?),
                "--prefix" => options.prefix = Some(value()?),
                "--all" => options.all = true,
                other => bail!("unknown option {other:?}\n\n{USAGE}"),
            }
        }
        Ok(options)
    }

    fn layout(&self) -> Result<Layout> {
        let project = self
            .project
            .as_deref()
            .context("--project DIR is missing: the folder with Cargo.toml")?;
        Layout::new(project, self.template.as_deref())
    }
}
