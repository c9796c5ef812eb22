#if COREML_SHIM
  import CoreMLShim
  import DiffusionCore
  import DiffusionCoreML
  import Foundation
  import TestBundle
  import Testing

  /// Packages compiled beforehand, and what is read of a compute plan; against a fake.
  @Suite struct CompiledBundleTests {
    private func temporary() -> URL {
      FileManager.default.temporaryDirectory.appending(path: "made-\(UUID().uuidString)")
    }

    /// The compiled model is an empty folder.
    private static let compile: CompiledModels.Compile = { _ in
      let place = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
      try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
      return place
    }

    @Test func itHoldsEveryPackageAndIsTakenInsteadOfCompiling() async throws {
      let small = try SmallBundle()
      let (place, base) = (temporary(), temporary())
      defer { try? FileManager.default.removeItem(at: place) }
      try await CompiledBundle.make(of: small.bundle, at: place, compile: CompiledBundleTests.compile)
      let names = try FileManager.default.contentsOfDirectory(atPath: place.path).sorted()
      #expect(names == ["core_4.mlmodelc", "digest", "down_8.mlmodelc", "up_8.mlmodelc"])
      let models = CompiledModels(bundle: small.bundle, base: base, precompiled: place) { _ in
        throw CocoaError(.featureUnsupported)
      }
      for package in small.bundle.manifest.packages {
        #expect(try await models.url(of: package).path.hasPrefix(place.path))
      }
      #expect(!FileManager.default.fileExists(atPath: base.path))
      let other = try SmallBundle(.student)
      let wrong = CompiledModels(bundle: other.bundle, base: base, precompiled: place)
      await #expect(throws: MatryoshkaError.self) {
        try await wrong.url(of: other.bundle.manifest.packages[0])
      }
    }

    @Test func aBundleOfCoreAIIsRefused() async throws {
      let small = try SmallBundle(format: .coreai)
      let (bundle, folder) = (small.bundle, temporary())
      let models = CompiledModels(bundle: bundle, base: folder, compile: CompiledBundleTests.compile)
      let works: [@Sendable () async throws -> Void] = [
        { try await models.prepare() },
        { try await CoreMLRuntime(models: models).load(bundle.manifest.packages[0]) },
        { _ = try await Placement(of: bundle.manifest.packages[0], models: models) },
        { try await CompiledBundle.make(of: bundle, at: folder, compile: CompiledBundleTests.compile) },
      ]
      for work in works {
        let error = await #expect(throws: MatryoshkaError.self) { try await work() }
        #expect(
          error?.errorDescription
            == "bundle: holds Core AI packages; run them with CoreAIRuntime of DiffusionCoreAI, on iOS 27 "
            + "or macOS 27.")
      }
      #expect(!FileManager.default.fileExists(atPath: folder.path))
    }

    @Test func oneThatFailsLeavesNothing() async throws {
      let small = try SmallBundle()
      let parent = temporary()
      try FileManager.default.createDirectory(at: parent, withIntermediateDirectories: true)
      defer { try? FileManager.default.removeItem(at: parent) }
      let place = parent.appending(path: "compiled")
      await #expect(throws: MatryoshkaError.self) {
        try await CompiledBundle.make(of: small.bundle, at: place) { package in
          if package.lastPathComponent.hasPrefix("up") { throw CocoaError(.fileReadCorruptFile) }
          return try await CompiledBundleTests.compile(package)
        }
      }
      #expect(try FileManager.default.contentsOfDirectory(atPath: parent.path).isEmpty)
    }

    @Test func placesAreCountedByThePlanOfTheFunction() async throws {
      let small = try SmallBundle(.functions)
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let models = CompiledModels(
        bundle: small.bundle, base: folder, compile: CompiledBundleTests.compile)
      let package = small.bundle.manifest.packages[1]
      let placement = try await Placement(of: package, models: models) { _, configuration in
        #expect(configuration.computeUnits == .all)
        return CompiledBundleTests.plan
      }
      #expect(placement.package == "stop_8")
      #expect(placement.operations == ["neuralEngine": 2, "cpu": 1])
      #expect(placement.cost == ["neuralEngine": 0.75, "cpu": 0.25])
      #expect(placement.notOnNeuralEngine == ["gather": 1])
      #expect(Placement.devices == ["cpu"])
    }

    /// In stop_8 a constant, two convolutions (one within a block) and a gather.
    private static var plan: MLComputePlan {
      typealias Program = MLModelStructure.Program
      let inner = Program.Block(operations: [Program.Operation(operatorName: "conv")])
      let block = Program.Block(operations: [
        Program.Operation(operatorName: "const"),
        Program.Operation(operatorName: "conv", blocks: [inner]),
        Program.Operation(operatorName: "gather"),
      ])
      let functions = [
        "stop_4": Program.Function(block: inner), "stop_8": Program.Function(block: block),
      ]
      let (cpu, engine) = (
        MLComputeDevice.cpu(MLCPUComputeDevice()),
        MLComputeDevice.neuralEngine(MLNeuralEngineComputeDevice())
      )
      return MLComputePlan(modelStructure: .program(Program(functions: functions))) { operation in
        switch operation.operatorName {
        case "conv":
          (.init(supported: [cpu, engine], preferred: engine), .init(weight: 0.375))
        case "gather": (.init(supported: [cpu], preferred: cpu), .init(weight: 0.25))
        default: nil
        }
      }
    }
  }
#endif
