/**
 * What a rank has of the others: its place in the mesh, and the groups it talks to. One object, handed down; a run on one
 * rank has `solo`, whose groups hold this rank alone.
 */
import type { Communicator, Group } from "../comm/collectives/communicator.ts";
import { type Mesh, type Mode, singleRank } from "./mesh.ts";

export interface World {
  readonly mesh: Mesh;
  /** The group of a mode that this rank belongs to. The same mode gives the same group. */
  group(mode: Mode): Group;
  /** Ranks that use this rank's GPU and need nothing of each other while they compute a step's gradients, if there are any. */
  readonly device?: Group | undefined;
}

/**
 * @example
 * ```ts
 * import { solo } from "./world.ts";
 * const sum = Float32Array.of(3);
 * await solo.group("data").allReduce(sum); // nobody else is there
 * console.assert(solo.mesh.world === 1 && sum[0] === 3);
 * ```
 */
export const createWorld = (
  mesh: Mesh,
  communicator: Pick<Communicator, "group"> & {
    /** Ranks that use this rank's GPU, itself among them. */
    readonly sharing?: readonly number[];
  },
): World => ({
  mesh,
  group: (mode) => communicator.group(mode, mesh.group(mode).ranks),
  device: deviceGroup(mesh, communicator),
});

function deviceGroup(mesh: Mesh, { group, sharing = [] }: Parameters<typeof createWorld>[1]): Group | undefined {
  return sharing.length > 1 && computesApart(mesh) ? group("device", sharing) : undefined;
}

/** Whether a rank needs nothing of others from its first micro-batch to its last. */
export const computesApart = (mesh: Pick<Mesh, "size" | "world">): boolean =>
  mesh.size("data") === mesh.world && !meetsInPasses(mesh);

/** Whether ranks with other data meet inside a pass, for weights or for experts. */
export const meetsInPasses = (mesh: Pick<Mesh, "size">): boolean =>
  (["weight", "expert", "expert_weight"] as const).some((axis) => mesh.size(axis) > 1);

/** A group of one: every collective is over before it begins. */
function alone(name: string): Group {
  const nothing = () => Promise.resolve();
  const nobody = () => Promise.reject(new RangeError(`Group ${name} has one rank: there is nobody to talk to`));
  return {
    name,
    ranks: [0],
    index: 0,
    allReduce: nothing,
    reduceScatter: (data) => Promise.resolve(data),
    allGather: nothing,
    broadcast: nothing,
    gather: nothing,
    reduce: nothing,
    allToAll: (from, into) => Promise.resolve(into.set(from)),
    barrier: nothing,
    send: nobody,
    receive: nobody,
  };
}

/** A run on one rank. */
export const solo: World = { mesh: singleRank, group: alone };
