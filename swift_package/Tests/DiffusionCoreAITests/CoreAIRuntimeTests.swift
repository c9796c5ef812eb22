#if COREAI_SHIM
  import CoreAIShim
  import DiffusionCore
  import DiffusionCoreAI
  import Foundation
  import MatryoshkaDiffusion
  import TestBundle
  import Testing

  /// Names, functions, padded rows and reused arrays: the plumbing, against a fake. Not what Core AI makes
  /// of it.
  @Suite struct CoreAIRuntimeTests {
    private func finished(
      _ bundle: BundleFolder, _ cache: AIModelCache, steps: Int = 3, stopAt: Int? = nil
    ) async throws -> Finished {
      let pipeline = Pipeline(bundle: bundle, runtime: try CoreAIRuntime(bundle: bundle, cache: cache))
      let request = PictureRequest(
        prompt: "", sampler: SamplerSettings(steps: steps), stopAt: stopAt)
      var finished: Finished?
      for try await step in pipeline.generate(request) { finished = step.finished }
      return try #require(finished)
    }

    /// From the second step on, both what the host gives and what packages put out lie where they lay
    /// before; nothing is copied and no array is new.
    @Test(arguments: [0, 3]) func aPictureIsMadeAndArraysAreFilledAgain(padding: Int) async throws {
      let small = try SmallBundle(format: .coreai)
      let packages = FakePackages(of: small.bundle, padding: padding)
      let cache = packages.cache()
      let made = try await finished(small.bundle, cache, steps: 4)
      #expect(made.pictures.map(\.width) == [8, 4])
      #expect(cache.specialized == [.default, .default, .default])
      let seen = packages.addresses.withLock { $0 }
      for name in ["x_8", "x_4", "temb_8", "temb_4", "features_4", "hidden_4"] {
        let places = try #require(seen[name])
        #expect(places.count >= 4 && Set(places).count == 1, "\(name): \(places)")
      }
    }

    /// The same picture whatever the layout. A reader that took no notice of strides would see the gaps.
    @Test func paddedRowsAndInterleavedArraysGiveTheSamePicture() async throws {
      let small = try SmallBundle(format: .coreai)
      let plain = try await finished(small.bundle, FakePackages(of: small.bundle).cache())
      for padding in [1, 5] {
        let padded = FakePackages(of: small.bundle, padding: padding).cache()
        #expect(try await finished(small.bundle, padded).values == plain.values)
      }
      let interleaved = FakePackages(of: small.bundle, interleaves: true).cache()
      #expect(try await finished(small.bundle, interleaved).values == plain.values)
      // The twin: packages that compute something else give another picture.
      let other = FakePackages(of: small.bundle, padding: 5) { _ in 0.125 }.cache()
      #expect(try await finished(small.bundle, other).values != plain.values)
    }

    @Test(arguments: Manifest.ElementType.allCases)
    func numbersAreWrittenAndReadByStrides(type: Manifest.ElementType) throws {
      let small = try SmallBundle(format: .coreai)
      let known = try #require(small.bundle.manifest.packages.first?.inputs.first)
      #expect(known.shape == [1, 3, 8, 8])
      let tensor = try Tensor(shape: known.shape, values: (0..<192).map { Float($0 - 96) })
      let feature = try feature(type)
      for padding in [0, 5] {
        let descriptor = NDArrayDescriptor(
          shape: known.shape, scalarType: NDArrays.type(type), padding: padding)
        var array = NDArrays.empty(descriptor)
        NDArrays.store(tensor, as: feature, in: &array)
        #expect(array.strides[2] == 8 + padding)
        #expect(try NDArrays.tensor(array, named: "x") == tensor)
        // Number 8 begins the second row, after the padding of the first.
        let size = type == .fp16 ? 2 : 4
        let bits = array.rawView().withUnsafeBytes { start, _, _ in
          (0..<size).map { start.load(fromByteOffset: size * 8 + $0, as: UInt8.self) }
        }
        #expect((bits == [UInt8](repeating: 0xA5, count: size)) == (padding > 0))
      }
    }

    /// A feature of the type in the shape of the outer picture.
    private func feature(_ type: Manifest.ElementType) throws -> Manifest.Feature {
      let small = try SmallBundle(format: .coreai)
      let text = try small.manifest(replacing: [("\"dtype\":\"fp16\"", "\"dtype\":\"\(type.rawValue)\"")])
      return try #require(try Manifest(parsing: Array(text.utf8)).packages.first?.inputs.first)
    }

    @Test func numbersOfAnUnknownTypeAreRefusedByName() {
      let array = NDArray(shape: [2], scalarType: .bfloat16)
      let error = #expect(throws: MatryoshkaError.self) { try NDArrays.tensor(array, named: "hidden") }
      #expect(
        error?.errorDescription
          == "package hidden: has numbers of a type that is not known here (bfloat16).")
    }

    @Test func functionsAreLoadedByNameAndSpecializedOnce() async throws {
      let small = try SmallBundle(.functions, format: .coreai)
      let cache = FakePackages(of: small.bundle).cache()
      for side in [4, 8] {
        let made = try await finished(small.bundle, cache, steps: 2, stopAt: side)
        #expect(made.picture.width == side)
      }
      #expect(cache.specialized == [.default])
    }

    /// Two prompts at once, as two callers would: each context keeps its own values.
    @Test func contextsDoNotMix() async throws {
      let small = try SmallBundle(format: .coreai)
      let runtime = try CoreAIRuntime(
        bundle: small.bundle, cache: FakePackages(of: small.bundle, padding: 3).cache())
      let package = small.bundle.manifest.packages[0]
      let output = package.outputs[0]
      try await runtime.load(package)
      try await withThrowingTaskGroup(of: Void.self) { group in
        for context in 0..<8 {
          group.addTask {
            for _ in 0..<5 {
              try await runtime.run(package, context: context, giving: package.zeros(Float(context)))
            }
          }
        }
        try await group.waitForAll()
      }
      for context in 0..<8 {
        let found = try await runtime.value(output.name, context: context).values
        // The means of two inputs of the same number.
        #expect(found == FakePackages.numbers(output.shape, 2 * Float(context)))
      }
    }

    /// Core AI knows packages by their paths.
    @Test func linksAreResolvedBeforeCoreAISeesThem() async throws {
      let small = try SmallBundle(format: .coreai)
      let link = FileManager.default.temporaryDirectory.appending(path: "link-\(UUID().uuidString)")
      let (folder, name) = (small.url.deletingLastPathComponent(), small.url.lastPathComponent)
      try FileManager.default.createSymbolicLink(at: link, withDestinationURL: folder)
      defer { try? FileManager.default.removeItem(at: link) }
      let cache = FakePackages(of: small.bundle).cache()
      for url in [link.appending(path: name), small.url] {
        try await CoreAIRuntime(bundle: BundleFolder(url: url), cache: cache).prepare()
      }
      #expect(cache.specialized.count == 3)
      #expect(cache.events.allSatisfy { !$0.path.contains(link.lastPathComponent) })
    }
  }
#endif
