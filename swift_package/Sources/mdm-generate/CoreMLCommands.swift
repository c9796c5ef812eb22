import Foundation
import MatryoshkaDiffusion

#if canImport(CoreML) || COREML_SHIM
  import DiffusionCoreML
#endif

/// The commands that need Core ML: compiling, planning, running. Type-checked on Linux; not run on a Mac.
struct CoreMLCommands {
  let options: CommandLineOptions
  let bundle: BundleFolder

  #if canImport(CoreML) || COREML_SHIM
    func runtime() throws -> any PackageRuntime {
      CoreMLRuntime(models: try models(), computeUnits: options.computeUnits)
    }

    func compile() async throws {
      guard let out = options.out else {
        throw MatryoshkaError.invalidArgument(name: "out", reason: "name the folder to make")
      }
      let isQuiet = options.isQuiet
      try await CompiledBundle.make(
        of: bundle, at: URL(filePath: out),
        progress: { done, total in
          if !isQuiet { Output.say("compiled \(done) of \(total)") }
        })
      try Output.put(options.isJSON ? ["compiled": out] : nil, out)
    }

    func devices() async throws {
      let models = try models()
      var placements: [Placement] = []
      for package in bundle.manifest.packages {
        placements.append(
          try await Placement(of: package, models: models, computeUnits: options.computeUnits))
      }
      let report = Report(devices: Placement.devices, packages: placements)
      try Output.put(options.isJSON ? report : nil, report.text)
    }

    private struct Report: Encodable {
      let devices: [String]
      let packages: [Placement]

      var text: String {
        let rows = packages.map { one in
          let counts = one.operations.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
          return "\(one.package): \(counts.joined(separator: ", "))"
        }
        return (["devices: \(devices.joined(separator: ", "))"] + rows).joined(separator: "\n")
      }
    }

    /// The models in the folder given by --compiled, or else in our own cache folder.
    private func models() throws -> CompiledModels {
      if let compiled = options.compiled {
        let place = URL(filePath: compiled)
        return CompiledModels(bundle: bundle, base: place, precompiled: place)
      }
      let caches = try FileManager.default.url(
        for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
      return CompiledModels(bundle: bundle, base: caches.appending(path: "mdm-generate"))
    }
  #else
    func runtime() throws -> any PackageRuntime { throw absent }
    func compile() async throws { throw absent }
    func devices() async throws { throw absent }

    private var absent: MatryoshkaError {
      .invalidArgument(name: "Core ML", reason: "is not on this system; run this command on a Mac")
    }
  #endif
}
