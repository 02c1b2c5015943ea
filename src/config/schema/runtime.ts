import { z } from "zod";
import { bool, float, int, nullableBytes, text, works } from "../field.ts";

/** Troupe's own settings: where and how the company runs. */
export const runtimeSchema = z.strictObject({
  backend: works(
    z.preprocess((value) => value === null ? "null" : value, z.enum(["webgpu", "cpu", "null"])).default("webgpu"),
    "What computes: webgpu, cpu (slow and exact, the reference), or null (computes nothing, for planning).",
  ),
  webgpu: works(
    z.enum(["deno", "dawn"]).default("deno"),
    "Which WebGPU: Deno's own, or Dawn, which reaches a GPU's matrix units. `./troupe doctor --add-dawn` adds Dawn; runs " +
      "with it start as `./troupe dawn train`, where it is the default.",
  ),
  bounds_checks: works(
    bool(),
    "The device holds every index of a kernel within its array. Troupe's own kernels need none of that, as tests show, and " +
      "Dawn computes products some 5 % faster without; Deno's own WebGPU always checks. Modules in plugins may bring kernels " +
      "that are not shown to be safe: say false where they bring none.",
    { derived: "true with plugins, else false" },
  ),
  device_memory: works(
    nullableBytes().default(null),
    "Memory of each device, such as 80GiB: a run that plans more is refused before it begins, with what would make it fit. " +
      "WebGPU does not tell what a GPU has; where the device computes in the machine's own memory, what is free is taken.",
    { example: "80GiB" },
  ),
  nproc: works(int({ min: 1 }).default(1), "Ranks on this machine, one process each."),
  gpu_turns: works(
    z.union([bool(), z.literal("always")]).default(true),
    "Data-parallel ranks that share a GPU compute their micro-batches one after the other: a GPU loses time where it goes " +
      "from one process to the next and back. With false all compute at once; with always they take turns where processors " +
      "compute too, which gains nothing and shows how it goes. No bit depends on it.",
  ),
  seed: works(int({ min: 0 }).default(1024), "Seed of weights and dropout; --seed sets it."),
  run_dir: works(text().min(1), "Folder for logs, metrics and traces of the run.", {
    derived: "RUN/{JOB_NAME}",
    example: "RUN/mine",
  }),
  plugins: works(z.array(text()).default([]), "Modules to load first: they register models of your own."),
  max_restarts: works(
    int({ min: 0 }).default(5),
    "Restarts of ranks that are allowed within restart_window_s, and of monitor and checkpoint manager.",
  ),
  restart_window_s: works(float({ above: 0 }).default(3600), "That time, in seconds."),
  step_timeout_s: works(
    float({ min: 0 }).default(600),
    "A step, or a batch of an evaluation, that takes longer, in seconds, is a failure; 0 for no limit. Starting and saving " +
      "may take ten times as long.",
  ),
  silence_timeout_s: works(
    float({ above: 0 }).default(30),
    "A rank that is not heard of for this long, in seconds, is taken for dead, and by its ranks a root that does not answer, " +
      "after ten seconds at most. Busy ranks are heard of every second.",
  ),
  tuning: works(
    z.record(z.string(), z.record(z.string(), z.string())).nullable().default(null),
    "Forms of kernels by adapter, as `troupe tune` found them: filled in when a run begins, and kept in its checkpoints, " +
      "since sums in another order differ in their last bits. {} for the shipped ones.",
  ),
  encrypt: works(bool().default(false), "Encrypt what ranks send to each other."),
  elastic: works(
    bool().default(false),
    "When a host is lost and no other comes, go on with fewer data-parallel ranks: with the same batches, dealt out anew.",
  ),
}).describe("Where and how the run is carried out (Troupe's own settings)");
