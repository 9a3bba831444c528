//! A container with its processes, as long as it is in the table.

use std::sync::Arc;

use nacre_protocol::id::ContainerId;
use tokio::task::AbortHandle;

use super::error::ProcessError;
use super::process::Process;
use super::registry::{Refused, Registry, Reservation};
use crate::container::Container;

/// Every container of the guest by its id.
#[derive(Debug, Default, Clone)]
pub struct Table(Arc<Registry<Instance>>);

/// A container in the table.
#[derive(Debug)]
pub struct Instance {
    id: ContainerId,
    container: Arc<Container>,
    init: Arc<Process>,
    execs: Arc<Registry<Process>>,
    /// Watches its memory limit; ends with the instance.
    _watch: Option<Watch>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub struct Watch(pub AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Table {
    /// Takes a free id for a container to be made.
    ///
    /// # Errors
    /// [`ProcessError::ContainerExists`].
    pub fn reserve(&self, id: &ContainerId) -> Result<Reservation<Instance>, ProcessError> {
        self.0.reserve(id).map_err(|refused| refused_container(id, refused))
    }

    /// Takes a container out, for its deletion.
    ///
    /// # Errors
    /// [`ProcessError::NoContainer`], [`ProcessError::Busy`].
    pub fn retire(&self, id: &ContainerId) -> Result<Reservation<Instance>, ProcessError> {
        self.0.retire(id).map_err(|refused| refused_container(id, refused))
    }

    /// A container.
    ///
    /// # Errors
    /// [`ProcessError::NoContainer`], [`ProcessError::Busy`].
    pub fn container(&self, id: &ContainerId) -> Result<Arc<Instance>, ProcessError> {
        self.0.get(id).map_err(|refused| refused_container(id, refused))
    }

    /// All containers that are complete.
    pub fn all(&self) -> Vec<Arc<Instance>> {
        self.0.all()
    }

    /// A process of a container: its init where no exec is named.
    ///
    /// # Errors
    /// Those of [`container`](Self::container), [`ProcessError::NoExec`].
    pub fn process(
        &self,
        id: &ContainerId,
        exec: Option<&ContainerId>,
    ) -> Result<Arc<Process>, ProcessError> {
        let instance = self.container(id)?;
        match exec {
            None => Ok(Arc::clone(instance.init())),
            Some(exec) => instance.exec(exec),
        }
    }
}

impl Instance {
    /// A container with its init and the task that watches its memory limit.
    pub fn new(id: ContainerId, container: Arc<Container>, init: Arc<Process>, watch: Option<Watch>) -> Self {
        Self { id, container, init, execs: Arc::default(), _watch: watch }
    }

    /// What the container module knows of it.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// Its init.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// One of its execs.
    ///
    /// # Errors
    /// [`ProcessError::NoExec`], [`ProcessError::Busy`].
    pub fn exec(&self, exec: &ContainerId) -> Result<Arc<Process>, ProcessError> {
        self.execs.get(exec).map_err(|refused| self.refused_exec(exec, refused))
    }

    /// Takes a free id for an exec to be made.
    ///
    /// # Errors
    /// [`ProcessError::ExecExists`].
    pub fn reserve_exec(&self, exec: &ContainerId) -> Result<Reservation<Process>, ProcessError> {
        self.execs.reserve(exec).map_err(|refused| self.refused_exec(exec, refused))
    }

    /// Takes an exec out, for its deletion.
    ///
    /// # Errors
    /// [`ProcessError::NoExec`], [`ProcessError::Busy`].
    pub fn retire_exec(&self, exec: &ContainerId) -> Result<Reservation<Process>, ProcessError> {
        self.execs.retire(exec).map_err(|refused| self.refused_exec(exec, refused))
    }

    fn refused_exec(&self, exec: &ContainerId, refused: Refused) -> ProcessError {
        let (container, exec) = (self.id.clone(), exec.clone());
        match refused {
            Refused::Missing => ProcessError::NoExec { container, exec },
            Refused::Busy => ProcessError::Busy(exec),
            Refused::Exists => ProcessError::ExecExists { container, exec },
        }
    }
}

fn refused_container(id: &ContainerId, refused: Refused) -> ProcessError {
    match refused {
        Refused::Missing => ProcessError::NoContainer(id.clone()),
        Refused::Busy => ProcessError::Busy(id.clone()),
        Refused::Exists => ProcessError::ContainerExists(id.clone()),
    }
}
