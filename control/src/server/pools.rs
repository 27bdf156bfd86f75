//! Pools. The table is computed here, by the leader, and is part of the command.

use std::sync::Arc;

use lunette_placement::{Candidate, PlanRequest, plan};
use lunette_proto::limits::PARTITIONS_DEFAULT;
use lunette_proto::map::{ClusterMap, DiskState, FailureDomain, Redundancy, Table};
use tonic::{Code, Request, Response, Status};

use super::Context;
use super::errors::{internal, rejected, status};
use super::view::DOMAINS;
use crate::api::admin::pools_server::Pools;
use crate::api::admin::{
    CreatePoolRequest, DeletePoolRequest, DeletePoolResponse, GetPoolRequest, ListPoolsRequest,
    ListPoolsResponse, Pool,
};
use crate::state::{Command, NameKind, Rejection, State, check_shape};

impl Context {
    fn pool_view(&self, state: &State, name: &str) -> Result<Pool, Status> {
        let pool = state.map().pool_by_name(name).ok_or_else(|| {
            let name = name.chars().take(lunette_proto::limits::NAME_CHARS_MAX).collect();
            rejected(&Rejection::NotFound { kind: NameKind::Pool, name })
        })?;
        Ok(self.look(state, |view| view.pool(pool)))
    }
}

#[tonic::async_trait]
impl Pools for Context {
    async fn create(&self, request: Request<CreatePoolRequest>) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        let shape = Shape::of(&request).map_err(|rejection| rejected(&rejection))?;
        let state = self.state().await?;
        // The name comes first: a plan of a large cluster takes a while.
        if state.map().pool_by_name(&request.name).is_some() {
            return Err(rejected(&Rejection::Exists { kind: NameKind::Pool, name: request.name }));
        }
        let planned = tokio::task::spawn_blocking(move || shape.plan(state.map())).await;
        let table = planned
            .map_err(|error| internal("the plan of a pool's table was cut off", &error))?
            .map_err(|rejection| rejected(&rejection))?;
        let Shape { redundancy, failure_domain, .. } = shape;
        let name = request.name.clone();
        self.run(Command::CreatePool { name, redundancy, failure_domain, table: Arc::new(table) }).await?;
        self.pool_view(&self.published.state(), &request.name).map(Response::new)
    }

    async fn list(&self, _: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        let state = self.state().await?;
        let pools =
            self.look(&state, |view| state.map().pools.values().map(|pool| view.pool(pool)).collect());
        Ok(Response::new(ListPoolsResponse { pools }))
    }

    async fn get(&self, request: Request<GetPoolRequest>) -> Result<Response<Pool>, Status> {
        let state = self.state().await?;
        self.pool_view(&state, &request.get_ref().name).map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<DeletePoolRequest>,
    ) -> Result<Response<DeletePoolResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(status(Code::NotFound, "POOL_NOT_FOUND", "name the pool to delete"));
        }
        self.run(Command::DeletePool { name }).await?;
        Ok(Response::new(DeletePoolResponse {}))
    }
}

/// A pool's shape, with the defaults filled in.
#[derive(Clone, Copy)]
struct Shape {
    redundancy: Redundancy,
    failure_domain: FailureDomain,
    partitions: u32,
}

impl Shape {
    fn of(request: &CreatePoolRequest) -> Result<Self, Rejection> {
        let partitions = match request.partitions {
            0 => PARTITIONS_DEFAULT,
            partitions => partitions,
        };
        let invalid = Rejection::Replicas { replicas: request.replicas };
        let replicas = u8::try_from(request.replicas).ok().filter(|replicas| *replicas > 0).ok_or(invalid)?;
        let redundancy = match u8::try_from(request.min_size) {
            Ok(0) => Redundancy::replicated(replicas),
            Ok(min_size) => Redundancy::Replicated { replicas, min_size },
            Err(_) => return Err(Rejection::MinSize { min_size: request.min_size, replicas }),
        };
        check_shape(request.replicas, redundancy.min_size().into(), partitions)?;
        let failure_domain = match request.failure_domain.as_str() {
            "" => FailureDomain::Host,
            text => DOMAINS
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, domain)| *domain)
                .ok_or_else(|| Rejection::FailureDomain { text: text.chars().take(32).collect() })?,
        };
        Ok(Self { redundancy, failure_domain, partitions })
    }

    fn plan(self, map: &ClusterMap) -> Result<Table, Rejection> {
        // A disk that is not in sync may come back with old copies of other pools; a new one waits. One that is to be
        // emptied gets nothing.
        let in_sync = map.disks.values().filter(|disk| disk.state == DiskState::InSync && !disk.draining);
        let candidate = |disk: &lunette_proto::map::Disk| {
            let node = map.nodes.get(&disk.node)?;
            Some(Candidate {
                disk: disk.id,
                weight: disk.weight,
                host: node.host.clone(),
                rack: node.rack.clone(),
                zone: node.zone.clone(),
            })
        };
        let request = PlanRequest {
            width: self.redundancy.width(),
            partitions: self.partitions,
            failure_domain: self.failure_domain,
            candidates: in_sync.filter_map(candidate).collect(),
            previous: None,
        };
        match plan(&request) {
            Ok(plan) => Ok(plan.table),
            Err(error) => Err(Rejection::Placement {
                replicas: self.redundancy.width(),
                domain: format!("{:?}", self.failure_domain).to_lowercase(),
                problem: error.to_string(),
            }),
        }
    }
}
