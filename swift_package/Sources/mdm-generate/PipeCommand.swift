import DiffusionPipe
import MatryoshkaDiffusion

/// The runtime behind `--runtime pipe`. iOS starts no other processes, so it has none.
struct PipeCommand {
  let options: CommandLineOptions
  let bundle: BundleFolder

  func runtime() throws -> any PackageRuntime {
    #if os(Linux) || os(macOS)
      PipeRuntime(bundle: bundle, program: options.server, precision: options.precision)
    #else
      throw MatryoshkaError.invalidArgument(name: "runtime", reason: "pipe is not on this system; use coreml")
    #endif
  }
}
