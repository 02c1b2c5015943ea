/**
 * The sharding pass: gives each parameter of a traced graph its layout on a mesh. With every axis of size one it
 * changes no node; it still checks that the declared plan covers the model, so that a family cannot lack a layout.
 */
import type { Graph } from "../graph/graph.ts";
import { type Box, boxOf, layoutOf, type ShardingPlan } from "./layout.ts";
import type { Mesh } from "./mesh.ts";

/** @returns what this rank holds of each parameter, by canonical name */
export function shard(graph: Graph, plan: ShardingPlan, mesh: Mesh): ReadonlyMap<string, Box> {
  if (mesh.world !== mesh.size("data") * mesh.size("pipeline")) {
    throw new RangeError(
      `Cannot shard over ${mesh.world} ranks: parallel sizes other than data's and pipeline's must be 1`,
    );
  }
  const boxes = new Map<string, Box>();
  for (const [name, { tensor }] of graph.parameters) boxes.set(name, boxOf(tensor.shape, layoutOf(name, plan), mesh));
  return boxes;
}
