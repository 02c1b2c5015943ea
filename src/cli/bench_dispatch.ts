/**
 * What dispatches cost the host: a step is bounded by its kernels, and not by JavaScript, where the host is done with
 * submitting before the device is done with computing.
 */
import type { Kernel } from "../../kernels/kernel.ts";
import type { Backend } from "../backend/backend.ts";

/** Counts since the last `reset`. */
export interface Submitted {
  /** Calls of `submit`, each with one command encoder and one submission to the queue. */
  submits: number;
  /** Read-backs, each with a command encoder and a submission of its own. */
  reads: number;
  uploads: number;
  /** Dispatches of workgroups: a kernel may have several. */
  dispatches: number;
  /** The host's time in `submit`. */
  seconds: number;
}

/** A backend that counts what is submitted through it, and the time that this takes. */
export function watchSubmits(backend: Backend) {
  const counts: Submitted = { submits: 0, reads: 0, uploads: 0, dispatches: 0, seconds: 0 };
  const passes = new WeakMap<Kernel, number>();
  const passesOf = (kernel: Kernel): number => {
    let count = passes.get(kernel);
    if (count === undefined) {
      count = backend.name === "webgpu" ? kernel.passes(backend.traits).length : 1;
      passes.set(kernel, count);
    }
    return count;
  };
  const dispatchesOf = new WeakMap<object, number>();
  const watched: Backend = Object.create(backend, {
    submit: {
      value(list: Parameters<Backend["submit"]>[0]) {
        let count = dispatchesOf.get(list);
        if (count === undefined) {
          count = list.commands.reduce(
            (sum, command) => sum + (command.kind === "dispatch" ? passesOf(command.kernel) : 0),
            0,
          );
          dispatchesOf.set(list, count);
        }
        const started = performance.now();
        backend.submit(list);
        counts.seconds += (performance.now() - started) / 1000;
        counts.submits++;
        counts.dispatches += count;
      },
    },
    read: {
      value(ranges: Parameters<Backend["read"]>[0]) {
        counts.reads++;
        return backend.read(ranges);
      },
    },
    upload: {
      value(...args: Parameters<Backend["upload"]>) {
        counts.uploads++;
        backend.upload(...args);
      },
    },
  });
  const reset = () => void Object.assign(counts, { submits: 0, reads: 0, uploads: 0, dispatches: 0, seconds: 0 });
  return { watched, counts: counts as Readonly<Submitted>, reset };
}
