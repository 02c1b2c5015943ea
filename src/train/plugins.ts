/** Modules of the user's own that bring models. */
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

/** Loads the modules of `runtime.plugins`: each registers models when it is imported. */
export async function loadPlugins(modules: readonly string[], relativeTo = Deno.cwd()): Promise<void> {
  for (const module of modules) {
    const url = /^[a-z]+:/.test(module) ? module : pathToFileURL(resolve(relativeTo, module)).href;
    try {
      await import(url);
    } catch (error) {
      throw new Error(`Cannot load plugin ${module} of runtime.plugins: ${(error as Error).message}`, { cause: error });
    }
  }
}
