//! Where what is shown comes from: the running node, or the store's file when no node runs.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use governance_stream::storage::{ReadOnlyFile, StoreError, StoreIdentity};
use hyper::Method;
use serde_json::Value;

use super::{
    ask::{self, NodeArgs},
    failure::NotThere,
    question::{NoAnswer, Question, Shelf},
};

/// Who answers.
pub(super) enum Source {
    /// The node that runs on this directory.
    Node(PathBuf),
    /// The file of a node that does not run.
    File(Box<Stopped>),
}

/// A store's file that no process has.
pub(super) struct Stopped {
    directory: PathBuf,
    file: ReadOnlyFile,
    identity: StoreIdentity,
}

impl Source {
    /// Finds out whether a node runs, and says on stderr who answers, unless the answer does.
    pub(super) async fn find(node: &NodeArgs) -> anyhow::Result<Self> {
        let directory = node.directory()?;
        let shown = directory.display().to_string();
        if ask::listens(&directory).await? {
            if !node.json {
                eprintln!("asking the node that runs on {shown}");
            }
            return Ok(Self::Node(directory));
        }
        let file = inspect(&directory)?;
        let identity = file.identity()?;
        if !node.json {
            let place = file.place();
            eprintln!("no node runs on {shown}: reading {place}, which stays as it is");
        }
        Ok(Self::File(Box::new(Stopped {
            directory,
            file,
            identity,
        })))
    }

    /// `node`, or `file`.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::File(_) => "file",
        }
    }

    /// Asks, and notes in the answer who gave it.
    pub(super) async fn ask(&self, question: &Question) -> anyhow::Result<Value> {
        let mut answer = match self {
            Self::Node(directory) => {
                let body = serde_json::to_vec(question)?;
                ask::ask(directory, Method::POST, "/look", Some(body)).await?
            }
            Self::File(stopped) => stopped.answer(question)?,
        };
        if let Some(answer) = answer.as_object_mut() {
            answer.insert("source".to_owned(), self.name().into());
        }
        Ok(answer)
    }
}

impl Stopped {
    fn answer(&self, question: &Question) -> anyhow::Result<Value> {
        let answer = || {
            let snapshot = self.file.snapshot()?;
            question.answer(&Shelf {
                snapshot: &*snapshot,
                place: self.file.place(),
                identity: &self.identity,
                usage: self.file.usage()?,
            })
        };
        answer().map_err(|error: NoAnswer| match error {
            NoAnswer::Store(error) => self.explain(error),
            NoAnswer::NotThere(what) => NotThere(what).into(),
            NoAnswer::Invalid(why) => anyhow::anyhow!(why),
        })
    }

    /// A file that cannot be read may be one that a node has begun to write to.
    fn explain(&self, error: StoreError) -> anyhow::Error {
        match ReadOnlyFile::inspect(&self.directory) {
            Err(held @ StoreError::Held { .. }) => anyhow::Error::from(held)
                .context("a node has started on this store meanwhile; ask again"),
            Ok(_) | Err(_) => error.into(),
        }
    }
}

/// Opens the file of the store in `directory`, for reading.
fn inspect(directory: &Path) -> anyhow::Result<ReadOnlyFile> {
    let opened = ReadOnlyFile::inspect(directory);
    let is_held = matches!(opened, Err(StoreError::Held { .. }));
    let opened = opened.map_err(anyhow::Error::from);
    if is_held {
        return opened.context(
            "the store is in use, and nobody answers on the node's socket: the node is just \
             starting, or about to end; ask again",
        );
    }
    opened
}
