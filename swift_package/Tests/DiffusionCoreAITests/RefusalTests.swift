#if COREAI_SHIM
  import CoreAIShim
  import DiffusionCore
  import DiffusionCoreAI
  import Foundation
  import TestBundle
  import Testing

  /// What is refused, each in one sentence.
  @Suite struct RefusalTests {
    private struct Broken: LocalizedError {
      var errorDescription: String? { "The weights are missing." }
    }

    @Test func aBundleOfCoreMLIsRefused() throws {
      let small = try SmallBundle()
      let error = #expect(throws: MatryoshkaError.self) { try CoreAIRuntime(bundle: small.bundle) }
      #expect(
        error?.errorDescription
          == "bundle: holds Core ML packages; run them with CoreMLRuntime of DiffusionCoreML.")
    }

    @Test func aFolderThatIsGoneIsRefused() throws {
      let small = try SmallBundle(format: .coreai)
      try FileManager.default.removeItem(at: small.url)
      let error = #expect(throws: MatryoshkaError.self) { try CoreAIRuntime(bundle: small.bundle) }
      #expect(error?.errorDescription?.hasSuffix("cannot be found.") == true)
    }

    private enum Fault: CaseIterable {
      case none, function, input, shape, type, image, output
    }

    /// A package that is not the one that the manifest describes.
    private func program(_ package: Manifest.Package, _ fault: Fault) -> [String: Program] {
      func described(_ features: [Manifest.Feature]) -> [String: InferenceValue.Descriptor] {
        Dictionary(
          uniqueKeysWithValues: features.map {
            (
              $0.name,
              .ndArray(
                NDArrayDescriptor(
                  shape: fault == .shape ? $0.shape + [1] : $0.shape,
                  scalarType: fault == .type ? .bfloat16 : .float16))
            )
          })
      }
      var (inputs, outputs) = (described(package.inputs), described(package.outputs))
      if fault == .input { inputs["other"] = inputs.removeValue(forKey: "temb_8") }
      if fault == .image { inputs["x_8"] = .image }
      if fault == .output { outputs = [:] }
      return [fault == .function ? "other" : "main": Program(inputs: inputs, outputs: outputs) { _ in [:] }]
    }

    @Test func aPackageThatTheManifestDoesNotDescribeIsRefused() async throws {
      let small = try SmallBundle(format: .coreai)
      let package = small.bundle.manifest.packages[0]
      let listed =
        "the manifest lists an array of float16 in the shape [1, 3, 8, 8]; convert the model again"
      for fault in Fault.allCases {
        let cache = AIModelCache { _, _ in self.program(package, fault) }
        let runtime = try CoreAIRuntime(
          bundle: small.bundle, computeUnits: .cpuAndNeuralEngine, cache: cache)
        let said =
          switch fault {
          case .none: ""
          case .function: "has no function main; convert the model again"
          case .input:
            "has the inputs other, x_8, but the manifest lists temb_8, x_8; convert the model again"
          case .shape:
            "has an array of float16 in the shape [1, 3, 8, 8, 1] as its input x_8, but \(listed)"
          case .type: "has an array of bfloat16 in the shape [1, 3, 8, 8] as its input x_8, but \(listed)"
          case .image: "has an image as its input x_8, but \(listed)"
          case .output: "has no outputs, but the manifest lists features_4; convert the model again"
          }
        guard !said.isEmpty else {
          try await runtime.load(package)
          continue
        }
        let error = await #expect(throws: MatryoshkaError.self) { try await runtime.load(package) }
        #expect(error?.errorDescription == "package down_8: \(said).")
        // No other unit would change that.
        #expect(cache.specialized == [.engine])
      }
    }

    @Test func aRunThatCannotBeIsRefused() async throws {
      let small = try SmallBundle(format: .coreai)
      let package = small.bundle.manifest.packages[0]
      let packages = FakePackages(of: small.bundle)
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: packages.cache())
      func refusal(_ work: () async throws -> Void) async -> String? {
        let error = await #expect(throws: MatryoshkaError.self) { try await work() }
        return error?.errorDescription
      }
      let given = try package.zeros()
      #expect(
        await refusal { try await runtime.run(package, context: 0, giving: given) }
          == "package down_8: is not loaded.")
      try await runtime.load(package)
      #expect(
        await refusal { try await runtime.run(package, context: 0, giving: ["x_8": given["x_8"]].compactMapValues(\.self)) }
          == "package down_8: needs temb_8, which has no value yet.")
      let wrong = try Tensor(zeros: [1, 3])
      #expect(
        await refusal { try await runtime.run(package, context: 0, giving: ["x_8": wrong]) }
          == "package down_8: needs x_8 in the shape [1, 3, 8, 8], but was given the shape [1, 3].")
      #expect(
        await refusal { _ = try await runtime.value("features_4", context: 0) }
          == "package features_4: was not computed.")
    }

    @Test func causesAreKept() async throws {
      let small = try SmallBundle(format: .coreai)
      let package = small.bundle.manifest.packages[0]
      let packages = FakePackages(of: small.bundle)
      let cache = AIModelCache { url, options in
        try packages.functions(url, options).mapValues { _ in
          Program(
            inputs: packages.described(package.inputs), outputs: packages.described(package.outputs)
          ) { _ in throw Broken() }
        }
      }
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: cache)
      try await runtime.load(package)
      let error = await #expect(throws: MatryoshkaError.self) {
        try await runtime.run(package, context: 0, giving: package.zeros())
      }
      #expect(error?.errorDescription == "package down_8: The weights are missing.")
    }
  }
#endif
