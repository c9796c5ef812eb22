#if COREAI_SHIM
  import CoreAIShim
  import DiffusionCore
  import DiffusionCoreAI
  import Foundation
  import MatryoshkaDiffusion
  import Synchronization
  import TestBundle
  import Testing

  /// Which units Core AI is asked for, what happens if they refuse, and that nothing is specialized twice.
  @Suite struct UnitsTests {
    @Test func unitsAreAskedForInThisOrder() {
      #expect(Manifest.ComputeUnits.cpuOnly.specializations == [.cpuOnly])
      #expect(Manifest.ComputeUnits.cpuAndGPU.specializations == [.gpu])
      #expect(Manifest.ComputeUnits.cpuAndNeuralEngine.specializations == [.engine, .default])
      #expect(Manifest.ComputeUnits.all.specializations == [.default])
      #expect(SpecializationOptions.gpu != .engine && .gpu != SpecializationOptions.default)
    }

    /// A package that cannot be specialized for the Neural Engine, and one whose weights cannot be loaded.
    @Test(arguments: [false, true])
    func whatTheNeuralEngineRefusesRunsWhereCoreAIChooses(later: Bool) async throws {
      let small = try SmallBundle(format: .coreai)
      let packages = FakePackages(
        of: small.bundle, refusing: later ? [] : [.engine], unloadable: later ? [.engine] : [])
      let cache = packages.cache()
      let runtime = try CoreAIRuntime(
        bundle: small.bundle, computeUnits: .cpuAndNeuralEngine, cache: cache)
      let package = small.bundle.manifest.packages[0]
      try await runtime.load(package)
      try await runtime.run(package, context: 0, giving: package.zeros())
      #expect(cache.specialized == [.engine, .default])
      #expect(
        await runtime.remarks == [
          "down_8 runs where Core AI chooses, since its unit refused it (No room on the unit)."
        ])
      // Said once, however often the package is loaded.
      await runtime.unload(package)
      try await runtime.load(package)
      #expect(await runtime.remarks.count == 1)
    }

    @Test(arguments: [
      (Manifest.ComputeUnits.cpuAndGPU, [SpecializationOptions.gpu]), (.cpuOnly, [.cpuOnly]),
      (.all, [.default]), (.cpuAndNeuralEngine, [.engine, .default]),
    ])
    func whatNoUnitTakesIsRefused(
      units: Manifest.ComputeUnits, tried: [SpecializationOptions]
    ) async throws {
      let small = try SmallBundle(format: .coreai)
      let cache = FakePackages(
        of: small.bundle, refusing: [.gpu, .cpuOnly, .default, .engine]
      ).cache()
      let runtime = try CoreAIRuntime(bundle: small.bundle, computeUnits: units, cache: cache)
      let error = await #expect(throws: MatryoshkaError.self) {
        try await runtime.load(small.bundle.manifest.packages[0])
      }
      #expect(cache.specialized == tried)
      #expect(error?.code == "package_failed")
      #expect(error?.errorDescription?.contains("cannot be loaded (No room on the unit") == true)
      #expect(await runtime.remarks.isEmpty)
    }

    /// With one value of options for both, a second launch finds what the first one made.
    @Test(arguments: Manifest.ComputeUnits.allCases)
    func theCacheIsAskedWithTheOptionsThatPackagesAreSpecializedWith(
      units: Manifest.ComputeUnits
    ) async throws {
      let small = try SmallBundle(format: .coreai)
      let cache = FakePackages(of: small.bundle).cache()
      for _ in 0..<3 {
        let runtime = try CoreAIRuntime(bundle: small.bundle, computeUnits: units, cache: cache)
        try await runtime.prepare()
        for package in small.bundle.manifest.packages { try await runtime.load(package) }
      }
      #expect(cache.specialized == [units, units, units].compactMap(\.specializations.first))
      #expect(Set(cache.events.map(\.options)).count == 1)
      // The twin: other units are other options, and everything is specialized again.
      let other: Manifest.ComputeUnits = units == .cpuOnly ? .all : .cpuOnly
      try await CoreAIRuntime(bundle: small.bundle, computeUnits: other, cache: cache).prepare()
      #expect(cache.specialized.count == 6)
    }

    @Test func preparationSaysHowFarItIs() async throws {
      let small = try SmallBundle(.functions, format: .coreai)
      let cache = FakePackages(of: small.bundle).cache()
      let said = Mutex<[[Int]]>([])
      try await CoreAIRuntime(bundle: small.bundle, cache: cache).prepare { done, total in
        said.withLock { $0.append([done, total]) }
      }
      #expect(said.withLock { $0 } == [[0, 1], [1, 1]])
    }

    /// A load that is cancelled says nothing about the Neural Engine, so nothing else is tried.
    @Test func aLoadThatIsCancelledTriesNoOtherUnit() async throws {
      let small = try SmallBundle(format: .coreai)
      let begun = AsyncStream<Void>.makeStream()
      let cache = AIModelCache { _, options in
        begun.continuation.yield()
        try await Task.sleep(for: .seconds(60))
        throw FakePackages.Refused(options: options)
      }
      let (bundle, package) = (small.bundle, small.bundle.manifest.packages[0])
      let runtime = try CoreAIRuntime(
        bundle: bundle, computeUnits: .cpuAndNeuralEngine, cache: cache)
      let work = Task { try await runtime.load(package) }
      for await _ in begun.stream { break }
      work.cancel()
      await #expect(throws: CancellationError.self) { try await work.value }
      #expect(cache.specialized == [.engine])
    }

    /// Core AI may answer a cancelled load with an error of its own.
    @Test func anErrorOfACancelledLoadIsNoRefusalOfTheUnit() async throws {
      let small = try SmallBundle(format: .coreai)
      let cache = AIModelCache { _, options in
        withUnsafeCurrentTask { $0?.cancel() }
        throw FakePackages.Refused(options: options)
      }
      let (bundle, package) = (small.bundle, small.bundle.manifest.packages[0])
      let runtime = try CoreAIRuntime(
        bundle: bundle, computeUnits: .cpuAndNeuralEngine, cache: cache)
      let work = Task { try await runtime.load(package) }
      await #expect(throws: CancellationError.self) { try await work.value }
      #expect(cache.specialized == [.engine])
    }

    @Test func aCancelledRunLeavesWhatWasThere() async throws {
      let small = try SmallBundle(format: .coreai)
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: FakePackages(of: small.bundle).cache())
      let package = small.bundle.manifest.packages[0]
      try await runtime.load(package)
      try await runtime.run(package, context: 0, giving: package.zeros(1))
      let before = try await runtime.value(package.outputs[0].name, context: 0)
      let work = Task {
        withUnsafeCurrentTask { $0?.cancel() }
        try await runtime.run(package, context: 0, giving: package.zeros(2))
      }
      await #expect(throws: CancellationError.self) { try await work.value }
      #expect(try await runtime.value(package.outputs[0].name, context: 0) == before)
      try await runtime.run(package, context: 0, giving: package.zeros(2))
      #expect(try await runtime.value(package.outputs[0].name, context: 0) != before)
    }

    @Test func aPictureThatIsCancelledEndsAndTheNextIsMade() async throws {
      let small = try SmallBundle(format: .coreai)
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: FakePackages(of: small.bundle).cache())
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
      let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 5))
      for try await step in pipeline.generate(request) where step.index >= 1 { break }
      var finished: Finished?
      for try await step in pipeline.generate(request) { finished = step.finished }
      #expect(finished?.pictures.count == 2)
    }
  }
#endif
