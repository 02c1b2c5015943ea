/** Shared libraries of this process, as Linux knows them. */

const open = () =>
  Deno.dlopen("libc.so.6", {
    dl_iterate_phdr: { parameters: ["function", "pointer"], result: "i32" },
    dlopen: { parameters: ["buffer", "i32"], result: "pointer" },
  });

/** Names of what is loaded now; none elsewhere than on Linux. Needs the permission to load native code. */
export function loadedLibraries(): string[] {
  if (Deno.build.os !== "linux") return [];
  const libc = open(), names: string[] = [];
  const visit = new Deno.UnsafeCallback({ parameters: ["pointer", "usize", "pointer"], result: "i32" }, (info) => {
    // A `struct dl_phdr_info`: an address, and then the name, empty of the program itself.
    const name = new Deno.UnsafePointerView(info!).getPointer(8);
    if (name !== null) names.push(Deno.UnsafePointerView.getCString(name));
    return 0;
  });
  libc.symbols.dl_iterate_phdr(visit.pointer, null);
  visit.close();
  libc.close();
  return names.filter((name) => name !== "");
}

/** Keeps all that is loaded now for the life of the process, on Linux; elsewhere nothing is done. */
export function pinLibraries(): void {
  if (Deno.build.os !== "linux") return;
  const libc = open(), lazy = 0x1, onlyIfLoaded = 0x4, neverUnload = 0x1000;
  for (const name of loadedLibraries()) {
    libc.symbols.dlopen(new TextEncoder().encode(`${name}\0`), lazy | onlyIfLoaded | neverUnload);
  }
  libc.close();
}
